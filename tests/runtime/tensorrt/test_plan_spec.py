"""Specifications of plans: options, profiles, ranges, names of GPUs."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tests.support.models import random_dims
from tests.support.plan_dirs import HERE, RTX
from whisper_opt.core.errors import OptionError
from whisper_opt.runtime.tensorrt.plan_record import Target
from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec, covers, parse_gpu
from whisper_opt.runtime.tensorrt.plans import GRAPHS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "max_batch is 0; expected a positive integer"),
        ({"max_batch": True}, "max_batch is True"),
        ({"max_beam": -1}, "max_beam is -1; expected a positive integer"),
        ({"version_compatible": 1}, "version_compatible is 1; expected True or False"),
        ({"hardware_compatibility": "all"}, "hardware_compatibility is 'all'; expected one of"),
        ({"profile": "prefill"}, "profile has 'prefill'; expected PROFILE.DIMENSION="),
        ({"profile": "a.b=1:2"}, r"profile has 'a\.b=1:2'"),
    ],
)
def test_bad_specs(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PlanSpec(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 449}, "capacity is 449; this model decodes 448 positions"),
        ({"capacity": 114}, "capacity is 114; this model decodes 448 positions"),
        ({"profile": "prefill.n_new=1:4:449"}, r"is 1:4:449; expected at most 448, the positions"),
        ({"profile": "prefill.n_new=4:1:9"}, r"is 4:1:9; expected 1 <= MIN <= TYPICAL <= MAX"),
        ({"profile": "step.n_audio=0:1:1"}, r"step.n_audio is 0:1:1; expected 1 <= MIN"),
        ({"profile": "step.n_audio=1:1:9"}, r"expected at most 8, max_batch$"),
        ({"profile": "step.n_seq=1:5:41"}, r"expected at most 40, max_batch times max_beam"),
        ({"profile": "warmup.n_seq=1:1:1"}, "profile names 'warmup'; expected one of advance, al"),
        ({"profile": "step.n_mels=1:1:1"}, "profile 'step' has no dimension 'n_mels'; expected"),
    ],
)
def test_specs_beyond_the_model(options: dict[str, Any], message: str) -> None:
    spec = PlanSpec(**options)
    with pytest.raises(OptionError, match=message):
        spec.profiles(random_dims())


def test_profiles_cover_the_shapes_of_sessions() -> None:
    found = PlanSpec(max_batch=4, max_beam=3).profiles(random_dims())
    assert set(found) == set(GRAPHS)
    ranges = {profile.name: dict(profile.ranges) for group in found.values() for profile in group}
    assert ranges["encode"] == {"n_audio": (1, 1, 4)}
    assert ranges["step"]["n_new"] == (1, 1, 1)
    assert ranges["step"]["n_seq"] == (1, 3, 12)
    assert ranges["prefill"]["n_new"] == (1, 4, 224)
    assert ranges["align"]["n_aligned"] == (1, 64, 448)
    assert ranges["step"]["n_aligned"] == (0, 0, 0)
    changed = PlanSpec(profile=" prefill.n_new=1:3:9 , step.n_seq=1:2:2").profiles(random_dims())
    assert changed["decoder"][1].ranges["n_new"] == (1, 3, 9)
    assert changed["decoder"][0].ranges["n_seq"] == (1, 2, 2)


def test_covers_is_about_every_dimension() -> None:
    dims = random_dims()
    wide, narrow = PlanSpec().profiles(dims), PlanSpec(max_beam=2).profiles(dims)
    assert covers(wide, wide) is None
    assert covers(wide, narrow) is None
    assert covers(narrow, wide) == "built with step.n_seq 1 to 16; 1 to 40 is required"


@pytest.mark.parametrize("text", ["sm_86", "sm86", "8.6", "86", " SM_86 "])
def test_gpu_names(text: str) -> None:
    assert parse_gpu(text) == "sm_86"
    assert parse_gpu("12.1") == parse_gpu("sm_121") == "sm_121"


@pytest.mark.parametrize("text", ["", "rtx3060", "sm_", "8", "8.6.1", "-86"])
def test_bad_gpu_names(text: str) -> None:
    with pytest.raises(OptionError, match="expected a compute capability such as sm_86"):
        parse_gpu(text)


def test_directory_names() -> None:
    assert HERE.directory == "sm86-tensorrt-11.4.0.106"
    assert RTX.directory == "sm86+sm89-tensorrt-rtx-1.7.1.116"
    assert Target("tensorrt", "11.4", ("sm_90",)).platform.startswith(sys.platform)
