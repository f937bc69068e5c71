# ruff: noqa: RUF001  # letters that look like Latin ones are among the texts on purpose
"""Regenerate tests/data/tokens.json from openai-whisper's tokenizers.

Run from the repository root, in an environment with openai-whisper:

    python tools/goldens/make_token_golden.py

For each vocabulary size: special ids, languages, the non-speech tokens, texts with their tokens,
and tokens with their text (that of ``Tokenizer.decode``, and without special tokens).
"""

from __future__ import annotations

import json
import pathlib
import random
from typing import Any

from whisper.tokenizer import Tokenizer, get_tokenizer

TARGET = pathlib.Path(__file__).resolve().parents[2] / "tests" / "data" / "tokens.json"

SPECIAL = (
    "eot",
    "sot",
    "translate",
    "transcribe",
    "sot_lm",
    "sot_prev",
    "no_speech",
    "no_timestamps",
    "timestamp_begin",
)
TEXTS = (
    "",
    " ",
    "   ",
    "\n\n\t \r\n",
    "Hello, world!",
    " Hello, world!",
    "  two  spaces  ",
    "trailing space ",
    "line one\nline two\n\n  indented",
    "I'll say it's we've they'd can't I'm you're",
    "I'LL SAY IT'S",
    "naïve café Ångström ﬁ",
    "1234567890 3.14159 1,000,000 ½ Ⅷ ٣٤",
    "e-mail: a.b+c@d.example/path?x=1&y=[2]#z",
    "snake_case camelCase $100 50% ~tilde ^caret `tick`",
    "¿Qué? ¡Sí! «guillemets» “quotes” ‘single’ – — …",
    "你好，世界。今天天氣很好",
    "こんにちは世界 カタカナ 「引用」『本』",
    "안녕하세요 세계",
    "Привет, мир! Ёлка",
    "Γειά σου Κόσμε",
    "שלום עולם",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "👍🏽 👨‍👩‍👧‍👦 🇫🇮 ♪ ♫ ♬ ♭ ♯ ♩",
    "♪♪ (( [[ {{ -- --- << >>>",
    "e\u0301 combining, zero\u200bwidth, nbsp\u00a0here, \u2028 separator",
    "tab\tand\x00nul and \x7f",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 \U0010ffff",
    "a" * 60,
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "<| not special |> <|en <en|>",
    "Mr. Quilter is the apostle of the middle classes, and we are glad to welcome his gospel.",
)


def layout(tokenizer: Tokenizer) -> dict[str, Any]:
    """Ids that depend on the size of the vocabulary."""
    codes = zip(tokenizer.all_language_tokens, tokenizer.all_language_codes)
    return {
        "special": {name: getattr(tokenizer, name) for name in SPECIAL},
        "languages": {code: token for token, code in sorted(codes)},
        "non_speech_tokens": tokenizer.non_speech_tokens,
    }


def sequences(tokenizer: Tokenizer) -> list[list[int]]:
    """Tokens to decode: random ones, single bytes, texts split within characters, special
    tokens."""
    rng = random.Random(0)
    found = [[rng.randrange(tokenizer.timestamp_begin + 200) for _ in range(8)]]
    found += [[rng.randrange(tokenizer.eot) for _ in range(12)] for _ in range(12)]
    found += [[rng.randrange(256) for _ in range(10)] for _ in range(12)]
    for text in TEXTS[15:26]:
        tokens = tokenizer.encode(text)
        found += [tokens[:cut] for cut in range(1, min(len(tokens), 5))]
        found += [tokens[cut:] for cut in range(1, min(len(tokens), 5))]
    so, time = tokenizer.encode(" so"), tokenizer.timestamp_begin
    found += [[*tokenizer.sot_sequence_including_notimestamps, *so, tokenizer.eot], [time, *so]]
    return found


def codec(tokenizer: Tokenizer) -> dict[str, list[Any]]:
    """Texts with their tokens; tokens with their text, with and without special tokens."""
    decoded = []
    for tokens in sequences(tokenizer):
        ordinary = [token for token in tokens if token < tokenizer.eot]
        decoded.append([tokens, tokenizer.decode(tokens), tokenizer.decode(ordinary)])
    return {"encoded": [[text, tokenizer.encode(text)] for text in TEXTS], "decoded": decoded}


def main() -> None:
    """Write the golden file."""
    golden: dict[str, dict[str, Any]] = {}
    for n_vocab in (51864, 51865, 51866):
        tokenizer = get_tokenizer(n_vocab > 51864, num_languages=100 if n_vocab == 51866 else 99)
        golden[str(n_vocab)] = layout(tokenizer)
        if n_vocab != 51866:  # text and its tokens are those of 51865
            golden[str(n_vocab)].update(codec(tokenizer))
    TARGET.write_text(json.dumps(golden, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
