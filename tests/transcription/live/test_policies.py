"""When words are committed."""

from __future__ import annotations

import dataclasses

import pytest

from tests.support.live_words import words
from whisper_opt import LiveOptions
from whisper_opt.transcription.live.policies import AlignAtt, Both, LocalAgreement, policy_of


def test_agreement_needs_n_results() -> None:
    assert LocalAgreement(2).stable([words("a b")]) == 0
    assert LocalAgreement(2).stable([words("a b"), words("a b c")]) == 2
    assert LocalAgreement(3).stable([words("a b"), words("a b c")]) == 0
    assert LocalAgreement(3).stable([words("a x"), words("a b"), words("a b c")]) == 1
    assert LocalAgreement(2).stable([words("x"), words("a b"), words("a b c")]) == 2


def test_align_att_stops_at_the_first_word_near_the_end() -> None:
    near = [dataclasses.replace(w, margin=m) for w, m in zip(words("a b c d"), (90, 25, 24, 80))]
    assert AlignAtt(25).stable([near]) == 2
    assert AlignAtt(24).stable([near]) == 4
    assert AlignAtt(25).stable([[]]) == 0
    assert AlignAtt(25).stable([]) == 0


def test_align_att_stops_where_the_attention_jumps_back() -> None:
    first, second, third = words("a b c")
    back = dataclasses.replace(second, jumps_back=True)
    assert AlignAtt(25).stable([[first, back, third]]) == 1


def test_both_commit_what_each_commits() -> None:
    policy = Both((LocalAgreement(2), AlignAtt(25)))
    far, near = words("a b", margin=50), words("c d", margin=5)
    assert policy.stable([[*far, *near]]) == 0
    assert policy.stable([[*far, *near], [*far, *near]]) == 2
    assert policy.stable([[far[0]], [*far, *near]]) == 1


@pytest.mark.parametrize(
    ("name", "kind"), [("agreement", LocalAgreement), ("align_att", AlignAtt), ("both", Both)]
)
def test_policies_by_name(name: str, kind: type) -> None:
    assert type(policy_of(LiveOptions(policy=name))) is kind
