"""The state machine of a live session."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.live_script import RATE, Script, result
from tests.support.live_words import words
from whisper_opt import Committed, EngineError, LiveOptions, TranscribeOptions
from whisper_opt.audio.vad.gate import Edge
from whisper_opt.transcription.live.transcriber import LiveTranscriber
from whisper_opt.transcription.live.window import Hypothesis, Update
from whisper_opt.transcription.live.words import LiveWord, text_of

pytestmark = pytest.mark.usefixtures("hear_no_speech")


def options(**changed: Any) -> LiveOptions:
    return LiveOptions(**{"vad": False, "policy": "agreement", "update_s": 0.5, **changed})


def test_words_are_committed_when_two_results_agree() -> None:
    script = Script(options())
    script.hear(result(words("hello word")), 1.0)
    assert (script.committed(), script.partial) == ("", " hello word")
    update = script.hear(result(words("Hello, world how")), 1.0)
    assert (script.committed(), script.partial) == (" Hello,", " world how")
    assert update.prefix == ()
    update = script.hear(result(words("world how are")), 1.0)
    assert update.prefix == tuple(t for w in words("Hello,") for t in w.tokens)
    assert update.draft == tuple(t for w in words("world how") for t in w.tokens)
    assert script.committed() == " Hello, world how"


def test_an_update_waits_for_the_one_before_and_for_new_audio() -> None:
    script = Script(options())
    script.speak(0.4)
    assert script.session.next_update() is None
    script.speak(0.2)
    update = script.update()
    script.speak(3.0)
    assert script.session.next_update() is None  # all that comes is in one update
    script.answer(update, result(words("a")))
    assert script.update().end == round(3.6 * RATE)


def test_the_end_of_an_utterance_commits_the_rest() -> None:
    script = Script(options())
    script.hear(result(words("a b")), 1.0)
    script.speak(0.5)
    script.do("commit")
    script.hear(result(words("a b c")), 0.0)
    assert script.committed() == " a b c"
    (finished,) = script.session.finished
    assert (finished.start, finished.end, len(finished.samples)) == (0.0, 1.5, 24_000)
    assert [word.text for word in finished.words] == [" a", " b", " c"]


def test_what_follows_a_comma_less_word_is_appended() -> None:
    """The committed text never changes; punctuation that comes later is added to it."""
    script = Script(options())
    script.hear(result(words("hey")), 1.0)
    script.hear(result(words("hey you")), 1.0)
    assert script.committed() == " hey"
    comma = dataclasses.replace(words("x")[0], text=",")
    script.hear(result([comma, *words("you there")]), 1.0)
    script.hear(result(words("there")), 1.0)
    assert script.committed() == " hey, you there"


@pytest.mark.parametrize(
    "bad",
    [
        {"avg_logprob": -1.5},
        {"compression_ratio": 3.0},
        {"truncated": True},
    ],
)
def test_results_that_fail_a_threshold_commit_nothing(bad: dict[str, Any]) -> None:
    script = Script(options())
    for _ in range(4):
        script.hear(result(words("a b c"), **bad), 1.0)
    assert script.committed() == ""


def test_silence_by_the_model_is_no_text() -> None:
    script = Script(options())
    script.hear(result(words("Thank you."), avg_logprob=-1.5, no_speech_prob=0.9), 1.0)
    script.do("commit")
    assert (script.committed(), script.partial) == ("", "")


def test_a_loop_is_cut_at_the_end_of_an_utterance() -> None:
    script = Script(options())
    script.speak(2.0)
    script.do("commit")
    script.hear(result(words("we go on and on and on and on and"), compression_ratio=3.0))
    assert script.committed() == " we go on and"


def test_a_loop_does_not_go_on_in_the_next_utterance() -> None:
    """Its text is no prompt."""
    script = Script(options())
    script.speak(2.0)
    script.do("commit")
    script.hear(result(words("so so so so so"), compression_ratio=3.0))
    script.speak(1.0)
    assert script.update().prompt == ()


def test_good_text_is_the_prompt_of_the_next_utterance() -> None:
    script = Script(options())
    script.speak(2.0)
    script.do("commit")
    script.hear(result(words("good text")))
    script.speak(1.0)
    assert script.update().prompt == tuple(t for w in words("good text") for t in w.tokens)


def test_two_failures_drop_the_prompt() -> None:
    script = Script(options())
    script.speak(2.0)
    script.do("commit")
    script.hear(result(words("good text")))
    script.hear(result(words("a"), avg_logprob=-2.0), 1.0)
    assert script.hear(result(words("b"), avg_logprob=-2.0), 1.0).prompt
    script.speak(1.0)
    assert script.update().prompt == ()


def test_without_previous_text_there_is_no_prompt() -> None:
    script = Script(options(), TranscribeOptions(condition_on_previous_text=False))
    script.speak(2.0)
    script.do("commit")
    script.hear(result(words("good text")))
    script.speak(1.0)
    assert script.update().prompt == ()


def test_the_budget_of_tokens_depends_on_the_audio() -> None:
    script = Script(options())
    assert script.hear(result(words("a")), 1.0).options.max_new_tokens == 50
    script.speak(5.0)
    assert script.update().options.max_new_tokens == 150


def test_clear_keeps_committed_words_only() -> None:
    script = Script(options())
    script.hear(result(words("a b")), 1.0)
    script.hear(result(words("a b c")), 1.0)
    script.speak(1.0)
    late = script.update()
    script.do("clear")
    script.answer(late, result(words("c d e")))  # comes too late
    assert script.committed() == " a b"
    (finished,) = script.session.finished
    assert text_of(finished.words) == " a b"
    script.speak(0.2)
    assert script.edges[-1][0] == "start"
    assert script.edges[-1][1] == pytest.approx(3.0)


def test_a_failed_update_is_made_up_for_by_the_next() -> None:
    script = Script(options())
    script.speak(1.0)
    script.session.failed(script.update())
    script.session.failed(script.update())
    assert script.session.next_update() is None  # not again and again
    script.speak(1.0)
    update = script.update()
    assert (update.start, update.end) == (0.0, 2 * RATE)


def test_audio_after_the_end_is_a_new_utterance() -> None:
    script = Script(options())
    script.speak(1.0)
    script.do("commit")
    script.speak(2.0)
    script.hear(result(words("one")))
    script.hear(result(words("two")))
    script.do("finish")
    assert (script.committed(0), script.committed(1)) == (" one", " two")
    assert script.edges == [("start", 0.0), ("stop", 1.0), ("start", 1.0), ("stop", 3.0)]
    assert [each.number for each in script.session.finished] == [0, 1]
    assert script.session.idle


def test_a_session_that_is_far_behind_ends() -> None:
    script = Script(options())
    for _ in range(31):
        script.speak(10.0)
    with pytest.raises(EngineError, match="300 s behind"):
        script.speak(10.0)


def test_a_long_committed_text_leaves_room_for_more() -> None:
    """The buffer is trimmed, and the prompt shortened, before the context is full."""
    script = Script(options(buffer_s=28.0))
    for i in range(12):
        spoken = words(f"{'x' * 60}{i}", start=2.0 * i, each=1.9)
        for _ in range(2):
            update = script.hear(result(spoken), 1.0)
            assert len(update.prompt) + len(update.prefix) <= 448 - 80
    assert script.committed().count("x" * 60) >= 11


@pytest.mark.parametrize("buffer_s", [12.0, 28.0])
def test_an_utterance_that_ended_long_after_what_is_heard_is_heard_to_its_end(
    buffer_s: float,
) -> None:
    """Under load more audio may wait than an update can have."""
    script = Script(options(max_utterance_s=600.0, buffer_s=buffer_s))
    script.speak(90.0)
    script.do("finish")
    for _ in range(40):
        if script.session.idle:
            break
        script.answer(script.update(), result([]))
    assert script.session.idle
    assert script.session.finished[0].end == 90.0


def test_a_full_buffer_is_trimmed_although_its_words_were_left_out_before() -> None:
    """Committed words before the buffer do not say where it may begin."""
    script = Script(options(max_utterance_s=600.0, buffer_s=4.0))
    for _ in range(2):
        script.hear(result(words("a b c")), 1.0)
    for _ in range(60):
        update = script.hear(result([]), 1.0)
    assert len(update.samples) < 28 * RATE
    assert update.end == 62 * RATE


def test_an_utterance_that_ends_and_one_that_begins_in_the_same_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The audio of the second one is kept, however long the block is."""
    script = Script(options(vad=True))
    edges = [Edge(0, is_start=True)]
    monkeypatch.setattr(script.session._gate, "feed", lambda samples: edges)
    script.hear(result(words("one")), 1.0)
    edges[:] = [Edge(RATE, is_start=False), Edge(2 * RATE, is_start=True)]
    script.speak(20.0)
    edges.clear()
    update = script.update()
    assert (update.start, len(update.samples)) == (2.0, 19 * RATE)


@pytest.mark.parametrize(("seconds", "goes_on"), [(1.2, False), (2.0, True)])
def test_a_result_does_not_end_before_what_is_said_after_the_committed_words(
    monkeypatch: pytest.MonkeyPatch, seconds: float, goes_on: bool
) -> None:
    script = Script(options(vad=True))
    edges = [Edge(0, is_start=True)]
    monkeypatch.setattr(script.session._gate, "feed", lambda samples: edges)
    script.speak(0.5)
    edges.clear()
    assert not script.update().goes_on  # nothing is committed
    script.answer(script.session._running, result(words("a b")))  # type: ignore[arg-type]
    script.hear(result(words("a b")), 0.5)
    assert script.committed() == " a b"  # up to 0.6 s
    script.speak(seconds - 1.0)
    script.session._gate.begin(0)
    script.do("commit")
    assert script.update().goes_on == goes_on


def test_a_full_stop_is_not_committed_in_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """The speaker may go on with the sentence."""
    script = Script(options())
    monkeypatch.setattr(
        "whisper_opt.audio.vad.gate.SpeechGate.quiet_since", round(0.6 * RATE), raising=True
    )
    monkeypatch.setattr(script.session._vocab, "decode", lambda ids: "".join(map(chr, ids)))
    last = LiveWord(" b.", (ord("b"), ord(".")), 0.3, 0.6, 0.9, margin=100)
    script.hear(result([*words("a"), last]), 1.6)
    assert (script.committed(), script.partial) == (" a b", ".")


# --- a speaker ------------------------------------------------------------------------------------

STEP = 0.05
PER_WORD = 6
EACH = STEP * PER_WORD


class Speaker:
    """Says word after word, one every 0.3 s; results are right but for the last word.

    Word ``i`` has the token ``i + 1``. Each update must begin with exactly those words that are
    committed and lie in its audio: then none is lost and none is doubled.
    """

    def __init__(self, seed: int, session: LiveTranscriber) -> None:
        self._session = session
        self._random = random.Random(seed)
        self._n_slips = 0

    def word(self, i: int, offset: float = 0.0) -> LiveWord:
        return LiveWord(f" w{i}", (i + 1,), i * EACH, (i + 1) * EACH, 0.9, margin=100)

    def answer(self, update: Update) -> Hypothesis:
        stop = self._session._utterances[0].stop
        ends = stop is not None and update.end >= stop
        first = math.ceil(update.start / EACH - 0.5)
        known = len(update.prefix)
        assert update.prefix == tuple(range(first + 1, first + 1 + known))
        last = int(update.end / RATE / EACH + 1e-6)  # words up to this one are complete
        found = [self.word(i) for i in range(first + known, last)]
        cut = update.end / RATE - last * EACH > 1e-6
        if cut and not ends and self._random.random() < 0.7:  # half a word, misheard
            self._n_slips += 1
            slip = dataclasses.replace(self.word(last), text=f" slip{self._n_slips}")
            found = [*found[: max(0, len(found) - self._random.randrange(2))], slip]
        bad = self._random.random() < 0.15 and not ends
        return result(found, avg_logprob=-2.0 if bad else -0.3)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["agreement", "both"]),
    st.lists(
        st.tuples(
            st.sampled_from(["speak"] * 8 + ["answer"] * 8 + ["commit", "fail"]),
            st.integers(1, 60),
        ),
        max_size=60,
    ),
)
def test_no_word_is_lost_doubled_or_taken_back(
    seed: int, policy: str, steps: list[tuple[str, int]]
) -> None:
    script = Script(options(policy=policy, max_utterance_s=8.0, buffer_s=4.0))
    speaker, spoken = Speaker(seed, script.session), 0  # in steps of 0.05 s
    before, failed = "", False
    for what, n in steps:
        if what == "speak":
            script.speak(n * STEP)
            spoken += n
        elif what == "commit":  # between two words
            rest = -spoken % PER_WORD
            script.speak(rest * STEP)
            spoken += rest
            script.do("commit")
        else:
            update = script.session.next_update()
            if update is None:
                continue
            if what == "fail" and not failed:
                script.session.failed(update)
            else:
                script.answer(update, speaker.answer(update))
            failed = what == "fail" and not failed
        assert script.committed().startswith(before)
        before = script.committed()
    spoken += -spoken % PER_WORD
    script.speak(spoken * STEP - script.session.received / RATE)
    script.do("finish")
    while not script.session.idle:
        update = script.update()
        script.answer(update, speaker.answer(update))
    assert script.committed() == "".join(f" w{i}" for i in range(spoken // PER_WORD))
    numbers = [each.number for each in script.session.finished]
    assert numbers == list(range(len(numbers)))
    per_utterance = [event.utterance for event in script.events if isinstance(event, Committed)]
    assert per_utterance == sorted(per_utterance)


def test_memory_and_buffer_are_bounded() -> None:
    """Half an hour of speech without a pause."""
    script, longest = Script(options(policy="agreement")), 0
    speaker = Speaker(3, script.session)
    for _ in range(1800):
        script.speak(1.0)
        update = script.session.next_update()
        if update is not None:
            longest = max(longest, len(update.samples))
            assert len(update.prompt) + len(update.prefix) < 250
            script.answer(update, speaker.answer(update))
        script.session.finished.clear()
    assert longest <= 28 * RATE
    assert script.session._audio._data.size <= 1 << 20
    assert len(script.session._utterances) == 1
