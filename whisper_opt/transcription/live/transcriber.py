"""A live session as a state machine: no threads, no clock, no model.

Audio goes in, updates come out; results of updates go in, events come out. Time is counted in
samples. A program decodes one update at a time, and whatever audio has come meanwhile is in the
next one.
"""

from __future__ import annotations

import collections
import dataclasses
import functools

from whisper_opt.audio.vad.gate import SpeechGate
from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import SAMPLE_RATE, ModelDims
from whisper_opt.core.errors import EngineError
from whisper_opt.core.options import LiveOptions, TranscribeOptions
from whisper_opt.text.live_events import (
    Committed,
    LiveEvent,
    Partial,
    SpeechStarted,
    SpeechStopped,
)
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.fallback import is_silent, is_unlikely, repeats
from whisper_opt.transcription.live.audio_buffer import AudioBuffer
from whisper_opt.transcription.live.languages import UtteranceLanguage
from whisper_opt.transcription.live.options import first_ids, update_options
from whisper_opt.transcription.live.policies import policy_of
from whisper_opt.transcription.live.prompt import Prompt
from whisper_opt.transcription.live.utterance import LiveUtterance
from whisper_opt.transcription.live.window import Hypothesis, Update
from whisper_opt.transcription.live.words import LiveWord, cut_loop, text_of

__all__ = ["Finished", "LiveTranscriber"]

LONGEST = 28.0
"""Seconds of audio in an update at most."""
_TOKENS_PER_SECOND = 25
_LEAST_TOKENS = 50
_PROMPT = 100
"""Ids of the text before an update at most."""
_PAUSE = round(0.9 * SAMPLE_RATE)
"""Samples without speech after which all words are committed; less costs more errors."""
_ROOM = 80
"""Ids at least that may follow the prompt and the committed text."""
_MOST_BEHIND = 300
"""Seconds of speech at most that wait to be decoded: the memory of a session is bounded."""
_KEPT = 5 * SAMPLE_RATE
"""Samples that are kept without an utterance: one may be found to have begun that long ago."""
_PADDING = round(0.1 * SAMPLE_RATE)
_UNWRITTEN = round(0.6 * SAMPLE_RATE)
"""Samples of speech after the last committed word from which on a result must have more words."""


@dataclasses.dataclass(frozen=True, eq=False)
class Finished:
    """An utterance whose words are all committed.

    Attributes:
        number: its number.
        samples: its audio, float32 [n] at 16 kHz.
        start: its beginning in seconds.
        end: its end in seconds.
        language: code of its language; None if nothing is known.
        words: its committed words.
    """

    number: int
    samples: F32
    start: float
    end: float
    language: str | None
    words: tuple[LiveWord, ...]


class LiveTranscriber:
    """Decides what to decode and what to commit.

    Attributes:
        events: events that have not been taken.
        finished: utterances that have not been taken.
        heard: samples up to which everything was decoded, or is no speech.
    """

    def __init__(
        self, vocab: Vocab, dims: ModelDims, options: TranscribeOptions, live: LiveOptions
    ) -> None:
        """Start a session; ``options`` were checked for the model."""
        self.events: collections.deque[LiveEvent] = collections.deque()
        self.finished: collections.deque[Finished] = collections.deque()
        self._vocab = vocab
        self._live = live
        self._policy = policy_of(live)
        self._options = options
        self._language = UtteranceLanguage(vocab.check_language(options.language, options.task))
        self._prompt = Prompt(first_ids(vocab, options), min(_PROMPT, dims.n_text_ctx // 4))
        self._plain = update_options(options, live)
        self._n_text_ctx = dims.n_text_ctx
        self._audio = AudioBuffer()
        ms = SAMPLE_RATE // 1000
        self._gate = SpeechGate(
            live.threshold,
            silence=live.silence_ms * ms,
            pre_roll=live.pre_roll_ms * ms,
            tail=live.tail_ms * ms,
            longest=round(live.max_utterance_s * SAMPLE_RATE),
        )
        self._utterances: collections.deque[LiveUtterance] = collections.deque()
        self._n_utterances = 0
        self._running: Update | None = None
        self._late = 0  # samples by which the last update began late
        self._n_failed = 0  # in a row
        self._ended = False

    # --- audio ------------------------------------------------------------------------------------

    @property
    def received(self) -> int:
        """Samples received."""
        return self._audio.end

    @property
    def heard(self) -> int:
        """Samples up to which everything was decoded, or is no speech."""
        return self._utterances[0].heard if self._utterances else self._audio.end

    @property
    def idle(self) -> bool:
        """Whether there is nothing to decode until more audio comes."""
        return not self._utterances and self._running is None

    @property
    def unfinished(self) -> list[int]:
        """Numbers of the utterances that are not taken as finished."""
        return [each.number for each in self.finished] + [u.number for u in self._utterances]

    def feed(self, samples: F32) -> None:
        """Add samples, F32 [n] at 16 kHz.

        Raises:
            EngineError: the model is far behind.
        """
        if self._audio.end - self.heard > _MOST_BEHIND * SAMPLE_RATE:
            raise EngineError(
                f"the model is {_MOST_BEHIND} s behind a live session, which has ended; use a"
                " smaller model, or fewer sessions"
            )
        self._audio.add(samples)
        for edge in self._gate.feed(samples):
            if not self._live.vad:
                continue
            if edge.is_start:
                self._begin(edge.at)
            else:
                self._stop(edge.at)
        if not self._live.vad and len(samples) and not self._open:
            self._begin(self._audio.end - len(samples))
        self._close()  # not before: what it forgets may belong to an utterance that begins here
        self._forget()

    @property
    def _open(self) -> bool:
        return bool(self._utterances) and self._utterances[-1].stop is None

    def _begin(self, at: int) -> None:
        self._utterances.append(LiveUtterance.at(self._n_utterances, at))
        self._n_utterances += 1
        self.events.append(SpeechStarted(at / SAMPLE_RATE, self._utterances[-1].number))
        if len(self._utterances) == 1:
            self._language.begin()

    def _stop(self, at: int) -> None:
        """End the open utterance at a sample, which may be yet to come; ``_close`` must follow."""
        last = self._utterances[-1]
        last.stop = max(at, last.start)
        self.events.append(SpeechStopped(last.stop / SAMPLE_RATE, last.number))

    def _divide(self, head: LiveUtterance) -> None:
        """End an utterance that is too long where its last committed word ends."""
        longest = round(self._live.max_utterance_s * SAMPLE_RATE)
        if head.stop is not None or head.heard - head.start <= longest:
            return
        least = head.start + longest // 2
        if not head.committed or head.committed[-1].end * SAMPLE_RATE < least:
            self._commit(head, len(head.pending) - 1, good=False)
        at = round(head.committed[-1].end * SAMPLE_RATE) if head.committed else head.heard
        at = min(at, head.heard) if at > head.start else head.heard
        self._gate.end(at)
        self._gate.begin(at)
        self._stop(at)
        self._begin(at)

    def commit(self) -> None:
        """End the open utterance now."""
        if self._open:
            at = self._audio.end
            self._gate.end(at)
            self._stop(at)
            self._close()

    def clear(self) -> None:
        """Forget the audio that has no committed words; utterances end with those they have."""
        for each in self._utterances:
            end = round(each.committed[-1].end * SAMPLE_RATE) if each.committed else each.start
            if each.stop is None:
                self._gate.end(self._audio.end)
                self.events.append(SpeechStopped(end / SAMPLE_RATE, each.number))
            each.stop = each.heard = min(end, each.stop or end)
            each.results.clear()
        self._running = None
        self._close()

    def finish(self) -> None:
        """No more audio comes."""
        self._ended = True
        self.commit()
        self._close()

    def _forget(self) -> None:
        """Forget audio before the first utterance that is not finished."""
        if self._utterances:
            self._audio.forget(self._utterances[0].start)
        else:
            self._audio.forget(self._audio.end - _KEPT)

    # --- updates ----------------------------------------------------------------------------------

    @property
    def wants_update(self) -> bool:
        """Whether there is something to decode now, and nothing is being decoded."""
        if self._running is not None or not self._utterances:
            return False
        head = self._utterances[0]
        return self._wanted(head, self._end_of(head))

    def next_update(self, late: float = 0.0) -> Update | None:
        """What to decode now; None if nothing, or while the last one is decoded.

        Args:
            late: seconds since its newest sample came; the next update comes so much later.
        """
        if not self.wants_update:
            return None
        self._late = round(late * SAMPLE_RATE)
        head = self._utterances[0]
        limit = head.begin + round(LONGEST * SAMPLE_RATE)
        self._running = self._update(head, min(self._end_of(head), limit))
        return self._running

    def _end_of(self, utterance: LiveUtterance) -> int:
        """Sample up to which there is audio of an utterance."""
        return self._audio.end if utterance.stop is None else min(utterance.stop, self._audio.end)

    def _wanted(self, head: LiveUtterance, end: int) -> bool:
        if head.stop is not None:
            return head.heard < end and (end == head.stop or self._ended)
        if end - head.heard >= self._live.update_s * SAMPLE_RATE + self._late:
            return True
        quiet = self._gate.quiet_since  # what was said before a pause need not wait
        return quiet is not None and head.heard < quiet + _PAUSE <= end

    def _update(self, head: LiveUtterance, end: int) -> Update:
        samples, prefix = self._audio.take(head.begin, end), head.prefix
        seconds = len(samples) / SAMPLE_RATE
        language = self._language
        settled = language.language if language.settled else None
        options = dataclasses.replace(
            self._plain,
            max_new_tokens=max(_LEAST_TOKENS, round(_TOKENS_PER_SECOND * seconds)),
            multilingual=settled is None,
        )
        return Update(
            samples=samples,
            start=head.begin / SAMPLE_RATE,
            end=end,
            prompt=self._previous(len(prefix)),
            prefix=prefix,
            language=settled,
            options=options,
            choose_language=functools.partial(language.choose, seconds=seconds),
            draft=tuple(token for word in head.pending for token in word.tokens),
            goes_on=self._goes_on(head, end),
        )

    def _goes_on(self, head: LiveUtterance, end: int) -> bool:
        """Whether somebody speaks after the committed words.

        After a wrong word or a full stop the model may think that all was said, and what follows
        would be lost.
        """
        if not self._live.vad or not head.committed:
            return False
        quiet = self._gate.quiet_since
        if head.stop is not None:
            quiet = head.stop - self._live.tail_ms * SAMPLE_RATE // 1000
        speech = end if quiet is None else min(quiet, end)
        return speech - head.committed[-1].end * SAMPLE_RATE > _UNWRITTEN

    def _previous(self, n_prefix: int) -> tuple[int, ...]:
        """The prompt, if so many ids of committed text follow it."""
        room = self._n_text_ctx - _ROOM - n_prefix
        if not self._options.conditions or room <= 0:
            return ()
        return self._prompt.tokens[-room:]

    def accept(self, update: Update, found: Hypothesis) -> None:
        """Take the result of an update."""
        if update is not self._running:  # its audio was forgotten meanwhile
            return
        self._running, self._n_failed = None, 0
        head = self._utterances[0]
        quiet = self._gate.quiet_since if head.stop is None else None
        paused = quiet is not None and update.end >= quiet + _PAUSE
        head.heard = update.end
        if found.languages is not None:
            self._hear_language(head, found, update)
        good = self._passes(found)
        self._prompt.result(good=good)
        head.add_result(self._plausible(found), self._live.agreement)
        if head.stop is not None and update.end >= head.stop:
            n = head.pending_before(head.stop)
        elif not self._language.settled:
            n = 0
        elif paused:
            n = head.part_mark(self._vocab.decode)
        else:
            n = self._policy.stable(head.results) if good else 0
        self._commit(head, n, good=good)
        self._show(head)
        self._divide(head)
        self._trim(head)
        self._close()
        self._forget()

    def failed(self, update: Update) -> None:
        """An update has no result; it is decoded once more, or else with the audio that follows."""
        if update is not self._running:
            return
        self._running = None
        self._n_failed += 1
        if self._n_failed > 1:
            self._utterances[0].heard = update.end
            self._n_failed = 0
        self._close()

    def _hear_language(self, head: LiveUtterance, found: Hypothesis, update: Update) -> None:
        assert found.languages is not None
        before = self._language.language
        self._language.heard(found.languages, len(update.samples) / SAMPLE_RATE)
        if self._language.language != before:
            head.results.clear()

    def _passes(self, found: Hypothesis) -> bool:
        unlikely = is_unlikely(found.avg_logprob, self._options)
        return not (self._loops(found) or unlikely)

    def _loops(self, found: Hypothesis) -> bool:
        return found.truncated or repeats(found.compression_ratio, self._options)

    def _plausible(self, found: Hypothesis) -> tuple[LiveWord, ...]:
        """The words of a result without what was probably not said."""
        if is_silent(found.no_speech_prob, self._options) and not self._passes(found):
            return ()
        return cut_loop(found.words) if self._loops(found) else found.words

    # --- words ------------------------------------------------------------------------------------

    def _commit(self, head: LiveUtterance, n: int, *, good: bool) -> None:
        words = head.commit(max(n, 0), good=good)
        if words:
            reported = tuple(word.word for word in words)
            self.events.append(Committed(text_of(words), reported, head.number))

    def _show(self, head: LiveUtterance) -> None:
        words = head.pending
        text = text_of(words)
        if text != head.shown:
            head.shown = text
            self.events.append(Partial(text, tuple(word.word for word in words), head.number))

    def _trim(self, head: LiveUtterance) -> None:
        """Leave out the beginning of the buffer if it is too long."""
        if head.stop is not None and head.heard >= head.stop:
            return
        size = head.heard - head.begin
        most = round(self._live.buffer_s * SAMPLE_RATE)
        full = len(head.prefix) > self._n_text_ctx // 2 or size >= LONGEST * SAMPLE_RATE
        if size <= most and not full:
            return
        earliest, latest = head.begin + SAMPLE_RATE, head.heard - SAMPLE_RATE
        at = head.cut_point(self._gate.pauses, earliest, latest)
        if at is None and (full or size > (most + LONGEST * SAMPLE_RATE) / 2):
            at = self._force(head, most)
        if at is not None:
            self._prompt.add(head.trim(at))

    def _force(self, head: LiveUtterance, most: int) -> int:
        """Commit words that no policy commits, because the buffer is too long."""
        at = head.heard - most // 2
        n = sum(word.end * SAMPLE_RATE <= at for word in head.pending)
        self._commit(head, n, good=False)
        self._show(head)
        if len(head.committed) > head.n_before:
            at = max(head.begin, min(at, round(head.committed[-1].end * SAMPLE_RATE) + _PADDING))
        return at

    def _close(self) -> None:
        """Finish utterances that are heard to their end."""
        while self._running is None and self._utterances:
            head = self._utterances[0]
            if head.stop is None or head.heard < min(head.stop, self._audio.end):
                break
            if self._audio.end < head.stop and not self._ended:
                break
            self._finish(head)

    def _finish(self, head: LiveUtterance) -> None:
        assert head.stop is not None
        self._commit(head, head.pending_before(head.stop), good=True)
        head.results.clear()  # what is left is heard again in the next utterance
        self._show(head)
        changed = self._language.end()
        if changed:
            self._prompt.forget()
        self._prompt.add(head.trim(max(head.stop, head.begin)))
        end = min(head.stop, self._audio.end)
        self.finished.append(
            Finished(
                head.number,
                self._audio.take(head.start, end),
                head.start / SAMPLE_RATE,
                end / SAMPLE_RATE,
                self._language.language,
                tuple(head.committed),
            )
        )
        self._utterances.popleft()
        self._language.begin()
        self._forget()
