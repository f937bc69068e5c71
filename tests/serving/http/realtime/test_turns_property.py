"""Whatever a client does: one transcript or failure per item, deltas that are only appended."""

from __future__ import annotations

import base64
import itertools
import json
from typing import Any, Union

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from tests.support.fake_live import FakeLive, loud, quiet
from whisper_opt.serving.http.realtime.conversation import Conversation
from whisper_opt.serving.http.realtime.settings import Settings

PREFIX = "conversation.item.input_audio_transcription."
TURNS: list[Any] = [None, {"type": "server_vad"}, {"type": "semantic_vad", "eagerness": "low"}]


class Watcher:
    """What a client can know of the items; fails as soon as the protocol is broken."""

    def __init__(self) -> None:
        self.deltas: dict[str, list[str]] = {}
        self.committed: list[str] = []
        self.ended: set[str] = set()

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
            if kind.endswith("completed"):  # the fake's final text is the committed text, and a dot
                assert event["transcript"].startswith("".join(self.deltas.get(item, [])))


class Client(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
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
        )

    def _open(self, chosen: Settings) -> tuple[int, FakeLive]:
        session = FakeLive(chosen.options, chosen.live, sample_rate=chosen.rate)
        self.sessions.append(session)
        return len(self.sessions) - 1, session

    def tell(self, type_: str, **fields: Any) -> None:
        if self.it.closing is None:
            self.it.receive(json.dumps({"type": type_, **fields}))

    @rule(parts=st.lists(st.tuples(st.booleans(), st.integers(1, 8)), min_size=1, max_size=3))
    def append(self, parts: list[tuple[bool, int]]) -> None:
        for speech, tenths in parts:
            samples = (loud if speech else quiet)(tenths / 10, self.it.settings.rate)
            audio = base64.b64encode(samples.tobytes()).decode()
            self.tell("input_audio_buffer.append", audio=audio)

    @rule()
    def commit(self) -> None:
        self.tell("input_audio_buffer.commit")

    @rule()
    def clear(self) -> None:
        self.tell("input_audio_buffer.clear")

    @rule(turns=st.sampled_from(TURNS), language=st.sampled_from([None, "en", "de"]))
    def update(self, turns: Any, language: Union[str, None]) -> None:
        given = {"turn_detection": turns, "transcription": {"language": language}}
        self.tell("session.update", session={"audio": {"input": given}})

    @rule(pick=st.integers(0, 5), n=st.integers(1, 6))
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

    @rule(fails=st.booleans())
    def fail(self, fails: bool) -> None:
        self.sessions[-1].fails = fails

    @rule(pick=st.integers(0, 30))
    def break_down(self, pick: int) -> None:
        """Sometimes a session breaks, and its events are lost."""
        if pick == 0:
            self.sessions[-1].cancel()

    def teardown(self) -> None:
        """No more audio: everything that was committed ends."""
        self.it.finish()
        for _ in self.sessions:
            self.listen(0, 10_000)
        assert self.over == set(range(len(self.sessions)))
        assert self.watcher.ended == set(self.watcher.committed)


Client.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TestClient = Client.TestCase
