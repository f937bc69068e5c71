"""Whatever a client does: one transcript or failure per item, deltas that are only appended."""

from __future__ import annotations

import base64
import itertools
import json
from typing import Any, Union

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.fake_live import FakeLive, loud, quiet
from tests.support.models import random_dims, tokenizer_json
from whisper_opt.serving.http.realtime.conversation import Conversation
from whisper_opt.serving.http.realtime.settings import Settings
from whisper_opt.text.vocabulary import Vocab

PREFIX = "conversation.item.input_audio_transcription."
TURNS: list[Any] = [None, {"type": "server_vad"}, {"type": "semantic_vad", "eagerness": "low"}]

DIMS = random_dims()
VOCAB = Vocab(tokenizer_json(DIMS), DIMS)


class Watcher:
    """What a client can know of the items; fails as soon as the protocol is broken."""

    def __init__(self) -> None:
        self.deltas: dict[str, list[str]] = {}
        self.committed: list[str] = []
        self.ended: set[str] = set()
        self.faults = False

    def see(self, event: dict[str, Any]) -> None:
        kind, item = event["type"], str(event.get("item_id"))
        json.dumps(event, allow_nan=False)
        if kind == "input_audio_buffer.committed":
            before = self.committed[-1] if self.committed else None
            assert event["previous_item_id"] == before
            assert item not in self.committed
            self.committed.append(item)
        elif kind == f"{PREFIX}delta":
            assert item not in self.ended
            assert event["delta"]
            self.deltas.setdefault(item, []).append(event["delta"])
        elif kind in (f"{PREFIX}completed", f"{PREFIX}failed"):
            assert item in self.committed
            assert item not in self.ended
            self.ended.add(item)
            assert self.faults or not kind.endswith("failed")
            if kind.endswith("completed"):  # the fake's final text is the committed text, and a dot
                assert event["transcript"].startswith("".join(self.deltas.get(item, [])))


class Client:
    """A client, and all that may happen to it."""

    def __init__(self) -> None:
        self.sessions: list[FakeLive] = []
        self.over: set[int] = set()
        self.watcher = Watcher()
        numbers = itertools.count()
        self.it = Conversation(
            Settings("whisper-1"),
            ("whisper-1",),
            self._open,
            self.watcher.see,
            lambda prefix: f"{prefix}_{next(numbers)}",
            vocab=lambda name: VOCAB,
        )

    def _open(self, chosen: Settings) -> tuple[int, FakeLive]:
        session = FakeLive(chosen.options, chosen.live, sample_rate=chosen.rate)
        self.sessions.append(session)
        return len(self.sessions) - 1, session

    def tell(self, type_: str, **fields: Any) -> None:
        if self.it.closing is None:
            self.it.receive(json.dumps({"type": type_, **fields}))

    def append(self, parts: list[tuple[bool, int]]) -> None:
        for speech, tenths in parts:
            samples = (loud if speech else quiet)(tenths / 10, self.it.settings.rate)
            audio = base64.b64encode(samples.tobytes()).decode()
            self.tell("input_audio_buffer.append", audio=audio)

    def commit(self) -> None:
        self.tell("input_audio_buffer.commit")

    def clear(self) -> None:
        self.tell("input_audio_buffer.clear")

    def update(self, turns: Any, language: Union[str, None]) -> None:
        given = {"turn_detection": turns, "transcription": {"language": language}}
        self.tell("session.update", session={"audio": {"input": given}})

    def listen(self, pick: int, n: int) -> None:
        """Some events of one session arrive; those of another may wait."""
        left = [i for i in range(len(self.sessions)) if i not in self.over]
        if not left:
            return
        number = left[pick % len(left)]
        session = self.sessions[number]
        for _ in range(min(n, len(session.pending))):
            self.it.heard(number, session.pending.popleft())
        if session.over:
            self.over.add(number)
            self.it.ended(number)

    def fail(self, fails: bool) -> None:
        self.sessions[-1].fails = fails
        self.watcher.faults = self.watcher.faults or fails

    def break_down(self) -> None:
        """A session breaks, and its events are lost."""
        self.sessions[-1].cancel()
        self.watcher.faults = True

    def end(self) -> None:
        """No more audio: everything that was committed ends."""
        self.it.finish()
        for _ in self.sessions:
            self.listen(0, 10_000)
        assert self.over == set(range(len(self.sessions)))
        assert self.watcher.ended == set(self.watcher.committed)


ARGUMENTS: dict[str, dict[str, Any]] = {
    "append": {
        "parts": st.lists(st.tuples(st.booleans(), st.integers(2, 8)), min_size=2, max_size=4)
    },
    "listen": {"pick": st.integers(0, 5), "n": st.integers(1, 6)},
    "commit": {},
    "clear": {},
    "update": {"turns": st.sampled_from(TURNS), "language": st.sampled_from([None, "en", "de"])},
    "fail": {"fails": st.sampled_from([False, False, True])},
    "break_down": {},
}
OFTEN = {"append": 12, "listen": 10, "commit": 6, "clear": 2, "update": 2, "fail": 2}
NAMES = [name for name in ARGUMENTS for _ in range(OFTEN.get(name, 1))]
ACTIONS = st.sampled_from(NAMES).flatmap(
    lambda name: st.tuples(st.just(name), st.fixed_dictionaries(ARGUMENTS[name]))
)


@given(st.lists(ACTIONS, min_size=15, max_size=60))
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_each_item_ends_once(actions: list[tuple[str, dict[str, Any]]]) -> None:
    client = Client()
    for name, arguments in actions:
        getattr(client, name)(**arguments)
    client.end()
