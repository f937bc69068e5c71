"""Vocabularies against openai-whisper's: ids, languages, text to tokens and back."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import model_dir
from tests.support.align_cases import VOCAB as ALIGN_VOCAB
from tests.support.align_cases import golden as align_golden
from tests.support.models import random_dims, tokenizer_json
from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import EngineError, OptionError
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.text.languages import ALIASES, CODES, LANGUAGES
from whisper_opt.text.vocabulary import Vocab, language_code

SIZES = (51864, 51865, 51866)
REAL = {"tiny.en": 51864, "base": 51865}


@functools.cache
def golden(n_vocab: int) -> dict[str, Any]:
    """Golden of ``tools/goldens/make_token_golden.py`` for a vocabulary size."""
    file = Path(__file__).parents[1] / "data" / "tokens.json"
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))[str(n_vocab)]
    return values


@functools.cache
def small(n_vocab: int = 51865) -> Vocab:
    dims = random_dims(n_vocab=n_vocab)
    return Vocab(tokenizer_json(dims), dims)


@functools.cache
def real(name: str) -> Vocab:
    text = (model_dir(name) / "tokenizer.json").read_text(encoding="utf-8")
    return Vocab(text, random_dims(n_vocab=REAL[name]))


def check_layout(vocab: Vocab, n_vocab: int) -> None:
    expected = golden(n_vocab)
    found = {name: getattr(vocab, name) for name in expected["special"]}
    assert found == expected["special"]
    assert vocab.languages == expected["languages"]
    assert list(vocab.languages) == list(LANGUAGES)[: len(expected["languages"])]
    assert vocab.timestamp_begin + 1501 == n_vocab


@pytest.mark.parametrize("n_vocab", SIZES)
def test_special_ids(n_vocab: int) -> None:
    check_layout(small(n_vocab), n_vocab)
    assert len(small(n_vocab).languages) == (100 if n_vocab == 51866 else 99)
    assert ("yue" in small(n_vocab).languages) == (n_vocab == 51866)
    assert small(n_vocab).is_multilingual == (n_vocab != 51864)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
class TestRealTokenizers:
    """The tokenizer files of published checkpoints."""

    def test_special_ids(self, name: str) -> None:
        check_layout(real(name), REAL[name])

    def test_encode(self, name: str) -> None:
        for text, tokens in golden(REAL[name])["encoded"]:
            assert real(name).encode(text) == tokens, text

    def test_decode(self, name: str) -> None:
        broken = 0
        for tokens, with_specials, without in golden(REAL[name])["decoded"]:
            assert real(name).decode(tokens, specials=True) == with_specials, tokens
            assert real(name).decode(tokens) == without, tokens
            broken += "\ufffd" in without
        assert broken > 20

    def test_round_trip(self, name: str) -> None:
        for text, tokens in golden(REAL[name])["encoded"]:
            assert real(name).decode(tokens) == text

    def test_non_speech_tokens(self, name: str) -> None:
        assert list(real(name).non_speech_tokens()) == golden(REAL[name])["non_speech_tokens"]

    def test_checkpoints_suppress_the_same(self, name: str) -> None:
        """Converted checkpoints also list the special tokens, which this library adds itself."""
        vocab = real(name)
        config = json.loads((model_dir(name) / "config.json").read_text(encoding="utf-8"))
        ours = {*vocab.non_speech_tokens(), *vocab.never_sampled()}
        assert set(config["suppress_ids"]) == ours
        assert config["suppress_ids_begin"] == list(vocab.blank_tokens())

    def test_blank(self, name: str) -> None:
        assert real(name).blank_tokens() == (220, golden(REAL[name])["special"]["eot"])


# --- text and tokens ----------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.text().filter(lambda text: "<|" not in text))
def test_text_comes_back(text: str) -> None:
    assert small().decode(small().encode(text)) == text


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 255), max_size=12))
def test_any_bytes_decode_as_python_does(raw: list[int]) -> None:
    """Ids 0 to 255 are the bytes in GPT-2's order: printable ones first."""
    order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order += [byte for byte in range(256) if byte not in order]
    assert small().decode(raw) == bytes(order[i] for i in raw).decode("utf-8", errors="replace")


def test_a_character_split_in_two() -> None:
    tokens = small().encode("日")
    assert len(tokens) == 3
    assert small().decode(tokens) == "日"
    assert small().decode(tokens[:2]) == "\ufffd"
    assert small().decode(tokens[1:]) == "\ufffd\ufffd"
    assert small().decode([*tokens[:2], *small().encode("a")]) == "\ufffda"


def test_times_are_never_text_and_specials_only_on_request() -> None:
    vocab = small()
    tokens = [
        vocab.sot,
        vocab.languages["de"],
        vocab.timestamp_begin,
        *vocab.encode(" so"),
        vocab.timestamp_begin + 1500,
        vocab.eot,
    ]
    assert vocab.decode(tokens) == " so"
    expected = "<|startoftranscript|><|de|> so<|endoftext|>"
    assert vocab.decode(tokens, specials=True) == expected
    assert vocab.decode([]) == ""


@pytest.mark.parametrize(
    "special", ["<|endoftext|>", "<|en|>", "<|startofprev|>", "<|notimestamps|>", "<|nospeech|>"]
)
def test_text_with_a_special_token_is_refused(special: str) -> None:
    with pytest.raises(OptionError) as raised:
        small().encode(f"before {special} after")
    assert special in str(raised.value)


@pytest.mark.parametrize("text", ["<|", "<||>", "<|english|>", "<| en |>", "|>en<|"])
def test_text_like_a_special_token_is_text(text: str) -> None:
    assert small().decode(small().encode(text)) == text


# --- languages and prompts ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_name", "code"),
    [
        ("en", "en"),
        ("EN", "en"),
        (" de ", "de"),
        ("German", "de"),
        ("GERMAN", "de"),
        ("german\n", "de"),
        ("castilian", "es"),
        ("Mandarin", "zh"),
        ("haitian creole", "ht"),
        ("Haitian", "ht"),
        ("Burmese", "my"),
        ("yue", "yue"),
        ("jw", "jw"),
        ("zh-CN", "zh"),
        ("zh_TW", "zh"),
        ("pt-BR", "pt"),
        ("es-419", "es"),
        ("sr-Latn-RS", "sr"),
        ("Chinese (Simplified)", "zh"),
        ("deu", "de"),
        ("ger", "de"),
        ("fra", "fr"),
        ("cmn", "zh"),
        ("jv", "jw"),
        ("iw", "he"),
        ("nb", "no"),
        ("nb-NO", "no"),
        ("nn-NO", "nn"),
        ("fil", "tl"),
        ("Farsi", "fa"),
        ("fa-IR", "fa"),
        ("Norwegian Bokmål", "no"),
    ],
)
def test_names_of_languages(given_name: str, code: str) -> None:
    assert language_code(given_name) == code


def test_every_name_and_alias() -> None:
    for code, name in LANGUAGES.items():
        assert language_code(code) == language_code(name.title()) == code
    for alias, code in ALIASES.items():
        assert language_code(alias.upper()) == code
    assert len(LANGUAGES) == 100
    for other, code in CODES.items():
        assert language_code(other) == code
    assert not CODES.keys() & LANGUAGES.keys()
    # all languages with a code of two letters have one of three
    assert {code for other, code in CODES.items() if len(other) == 3} == {
        code for code in LANGUAGES if len(code) == 2
    }


def test_the_language_of_a_tag_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert language_code("pt-BR") == "pt"
    assert "'pt-BR' is read as pt (portuguese)" in caplog.text


@pytest.mark.parametrize("auto", ["auto", "Auto", " AUTO "])
def test_auto_is_as_if_left_out(auto: str) -> None:
    assert small().check_language(auto, "transcribe") is None
    assert small(51864).check_language(auto, "transcribe") == "en"
    TranscribeOptions(language=auto, language_detection_segments=3)


@pytest.mark.parametrize("wrong", ["none", "gsw", "xx"])
def test_short_words_have_no_suggestions(wrong: str) -> None:
    with pytest.raises(OptionError, match="Leave the language out to have it detected") as raised:
        language_code(wrong)
    assert "did you mean" not in str(raised.value)


@pytest.mark.parametrize(
    ("wrong", "near"), [("Germn", "german"), ("engish", "english"), ("portugese", "portuguese")]
)
def test_an_unknown_language_has_suggestions(wrong: str, near: str) -> None:
    with pytest.raises(OptionError) as raised:
        small().check_language(wrong, "transcribe")
    message = str(raised.value)
    assert repr(wrong) in message
    assert "did you mean" in message
    assert near in message


@pytest.mark.parametrize("wrong", ["", "klingonese-42", "<|en|>", "en-US!"])
def test_an_unknown_language_without_suggestions(wrong: str) -> None:
    with pytest.raises(OptionError, match="unknown language") as raised:
        language_code(wrong)
    assert "did you mean" in str(raised.value) or " yue" in str(raised.value)


def test_check_language() -> None:
    assert small().check_language(None, "transcribe") is None
    assert small().check_language(None, "translate") is None
    assert small().check_language("Finnish", "translate") == "fi"
    assert small(51866).check_language("cantonese", "transcribe") == "yue"


def test_a_language_the_model_does_not_have() -> None:
    with pytest.raises(OptionError, match=r"'Cantonese' \(yue\) is not among the 99 languages"):
        small().check_language("Cantonese", "transcribe")


def test_an_english_model_writes_english() -> None:
    vocab = small(51864)
    for language in (None, "en", "English"):
        assert vocab.check_language(language, "transcribe") == "en"
    with pytest.raises(OptionError, match=r"'German'.*English-only.*multilingual"):
        vocab.check_language("German", "transcribe")
    with pytest.raises(OptionError, match=r"'translate'.*only transcribe"):
        vocab.check_language("en", "translate")
    with pytest.raises(OptionError, match="unknown language"):
        vocab.check_language("xx", "transcribe")


def test_the_start_of_a_transcript() -> None:
    vocab = small()
    expected = [vocab.sot, vocab.languages["fi"], vocab.transcribe]
    assert vocab.start("fi", "transcribe", timestamps=True) == expected
    expected = [vocab.sot, vocab.languages["fi"], vocab.translate, vocab.no_timestamps]
    assert vocab.start("fi", "translate", timestamps=False) == expected
    english = small(51864)
    assert english.start("en", "transcribe", timestamps=True) == [english.sot]
    expected = [english.sot, english.no_timestamps]
    assert english.start("en", "transcribe", timestamps=False) == expected


# --- tokenizer files ----------------------------------------------------------------------------

DIMS = random_dims(n_vocab=2000)


def changed(**changes: Any) -> str:
    return json.dumps({**json.loads(tokenizer_json(DIMS)), **changes})


def renamed(old: str, new: str) -> str:
    text = tokenizer_json(DIMS)
    assert old in text
    return text.replace(old, new)


def test_older_names_of_special_tokens() -> None:
    older = Vocab(renamed("<|nospeech|>", "<|nocaptions|>"), DIMS)
    assert older.no_speech == Vocab(tokenizer_json(DIMS), DIMS).no_speech


def test_a_file_that_lists_the_times() -> None:
    values = json.loads(tokenizer_json(DIMS))
    begin = Vocab(tokenizer_json(DIMS), DIMS).timestamp_begin
    times = [{"id": begin + i, "content": f"<|{i * 0.02:.2f}|>"} for i in range(1501)]
    vocab = Vocab(changed(added_tokens=values["added_tokens"] + times), DIMS)
    assert vocab.timestamp_begin == begin
    assert vocab.decode([begin, *vocab.encode(" so"), begin + 4], specials=True) == " so"
    assert len(vocab.languages) == 99


def test_merges_as_pairs_or_as_text() -> None:
    model = json.loads(tokenizer_json(DIMS))["model"]
    model["merges"] = [merge.split(" ") for merge in model["merges"]]
    text = "the same words either way"
    assert Vocab(changed(model=model), DIMS).encode(text) == small_encode(text)


def small_encode(text: str) -> list[int]:
    return Vocab(tokenizer_json(DIMS), DIMS).encode(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        "{",
        changed(added_tokens=None),
        changed(added_tokens=[{"id": 1}]),
        changed(model={"vocab": {}}),
        changed(model=None),
        changed(added_tokens=[]),
        renamed("<|startofprev|>", "<|other|>"),
    ],
)
def test_not_a_tokenizer_of_whisper(text: str) -> None:
    with pytest.raises(EngineError, match=r"tokenizer\.json"):
        Vocab(text, DIMS)


def test_merges_out_of_order_are_refused() -> None:
    model = json.loads(tokenizer_json(DIMS))["model"]
    model["merges"] = model["merges"][::-1]
    with pytest.raises(EngineError, match="order of the merges"):
        Vocab(changed(model=model), DIMS)


@pytest.mark.parametrize("dims", [random_dims(n_vocab=1999), random_dims(n_vocab=1900)])
def test_the_tokenizer_of_another_model_is_refused(dims: ModelDims) -> None:
    with pytest.raises(EngineError, match="another model"):
        Vocab(tokenizer_json(DIMS), dims)


# --- words ----------------------------------------------------------------------------------------


def check_splits(vocab: Vocab, name: str) -> None:
    cases = align_golden()["splits"][name]
    assert len(cases) > 60
    for language, words, parts in cases:
        tokens = [token for part in parts for token in part]
        assert vocab.split_words(tokens, language) == (words, parts)


def test_words_equal_the_reference() -> None:
    check_splits(ALIGN_VOCAB, "small")


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_words_of_real_tokenizers_equal_the_reference(name: str) -> None:
    check_splits(real(name), name)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 400), max_size=12), st.sampled_from(["en", "ja"]))
def test_no_token_is_lost_between_words(tokens: list[int], language: str) -> None:
    words, parts = small().split_words(tokens, language)
    assert [token for part in parts for token in part] == tokens
    assert "".join(words) == small().decode(tokens)
    assert [small().decode(part) for part in parts] == words


def test_words_of_broken_text() -> None:
    """The reference loses the text after half of a character that is split into two tokens."""
    sun = small().encode("日")
    tokens = [*small().encode(" a"), *sun[:2], *small().encode(" b"), *sun, sun[0]]
    for language, expected in {
        "en": [" a\ufffd", " b日\ufffd"],
        "zh": [" a", "\ufffd", " b", "日", "\ufffd"],
    }.items():
        words, parts = small().split_words(tokens, language)
        assert words == expected
        assert [token for part in parts for token in part] == tokens


def test_beginnings_of_words() -> None:
    def words(text: str) -> list[str]:
        return small().split_words(small().encode(text), "en")[0]

    assert words("so it is") == ["so", " it", " is"]
    assert words(" so, it(is).") == [" so", ",", " it", "(is", ")", "."]
    assert words(" so\n\nit") == [" so", "\n", "\nit"]
    assert words(" “so”") == [" “so”"]  # only ASCII punctuation
    assert words("") == []
