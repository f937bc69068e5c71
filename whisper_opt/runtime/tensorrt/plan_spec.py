"""Specification of TensorRT plans: shapes, as ranges of named dimensions, and flags.

The dimensions are those of the ONNX graphs (``export/graphs/graph.py``): A audios (n_audio), N rows
(n_seq, at most A times the beam size), S new tokens (n_new), P positions with scores (n_at), Q
tokens with attention (n_aligned). Dimensions that are fixed for a model are fixed in its plans.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import OptionError
from whisper_opt.core.options.fields import check_fields, option

__all__ = ["PlanSpec", "Profile", "Ranges", "covers", "parse_gpu"]

Ranges = Mapping[str, tuple[int, int, int]]
"""Smallest, typical and largest size of every dimension, by name."""

CAPACITY = 448
"""Positions of the self-attention cache: all of a Whisper decoder."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """One optimization profile.

    Attributes:
        name: its purpose: ``encode``; ``step``, ``prefill``, ``align``; ``choose``; ``advance``;
            ``reorder``.
        ranges: range of every dimension that varies.
    """

    name: str
    ranges: Ranges

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Profile:
        """Build from JSON.

        Raises:
            ValueError: a range is not three integers.
        """
        ranges = {}
        for name, (low, typical, high) in values["ranges"].items():
            if not all(type(size) is int for size in (low, typical, high)):
                raise ValueError(f"range of {name} is {[low, typical, high]}")
            ranges[str(name)] = (low, typical, high)
        return cls(str(values["name"]), ranges)


@dataclasses.dataclass(frozen=True)
class PlanSpec:
    """Shapes and flags of a build; validated when made, and against a model by :meth:`profiles`."""

    max_batch: int = option(8, "integer", "recordings decoded together, at most", low=1)
    max_beam: int = option(5, "integer", "hypotheses of a recording, at most (beam size)", low=1)
    profile: str | None = option(
        None,
        "text",
        "ranges to change, as PROFILE.DIMENSION=MIN:TYPICAL:MAX,... (docs/deploy.md lists them)",
        metavar="RANGES",
    )
    version_compatible: bool = option(
        False, "flag", "plans that later releases of the same major TensorRT run too"
    )
    hardware_compatibility: str | None = option(
        None,
        "text",
        "plans for other GPUs too: of the same compute capability, or of Ampere and later"
        " (TensorRT only, and slower)",
        choices=("same-sm", "ampere+"),
    )
    weight_streaming: bool = option(
        False, "flag", "plans whose weights may stay in host memory (slower, for small GPUs)"
    )
    capacity: int = option(CAPACITY, "integer", "positions of the cache", low=1)

    FLAGS: ClassVar[tuple[str, ...]] = (
        "version_compatible",
        "hardware_compatibility",
        "weight_streaming",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        self._changes()

    def _changes(self) -> dict[tuple[str, str], tuple[int, int, int]]:
        """The ranges that ``profile`` names."""
        changes = {}
        for part in (self.profile or "").replace(" ", "").split(","):
            if not part:
                continue
            match = re.fullmatch(r"(\w+)\.(\w+)=(\d+):(\d+):(\d+)", part)
            if match is None:
                raise OptionError(
                    f"profile has {part!r}; expected PROFILE.DIMENSION=MIN:TYPICAL:MAX, such as"
                    " prefill.n_new=1:4:224"
                )
            sizes = tuple(int(size) for size in match.groups()[2:])
            changes[match[1], match[2]] = (sizes[0], sizes[1], sizes[2])
        return changes

    def profiles(self, dims: ModelDims) -> dict[str, tuple[Profile, ...]]:
        """The optimization profiles of every graph, in order, for a model.

        Raises:
            OptionError: a profile or dimension is unknown, or a range is empty or beyond the model.
        """
        if self.capacity != dims.n_text_ctx:
            raise OptionError(
                f"capacity is {self.capacity}; this model decodes {dims.n_text_ctx} positions, and"
                " another capacity would cut text or waste memory"
            )
        ranges = self._ranges(dims)
        for (profile, dim), sizes in self._changes().items():
            self._change(ranges, profile, dim, sizes)
        for name, found in ranges.items():
            for dim, sizes in found.items():
                self._check(name, dim, sizes, dims)
        graphs = {
            "encoder": ("encode",),
            "decoder": ("step", "prefill", "align"),
            "choose": ("choose",),
            "advance": ("advance",),
            "reorder": ("reorder",),
        }
        return {
            graph: tuple(Profile(name, dict(ranges[name])) for name in names)
            for graph, names in graphs.items()
        }

    def _ranges(self, dims: ModelDims) -> dict[str, dict[str, tuple[int, int, int]]]:
        audios = (1, 1, self.max_batch)
        n_rows = self.max_batch * self.max_beam
        rows = (1, self.max_beam, n_rows)
        longest = dims.n_text_ctx
        decoder = {"n_audio": audios, "n_seq": rows}
        return {
            "encode": {"n_audio": audios},
            "step": {**decoder, "n_new": (1, 1, 1), "n_at": (1, 1, 1), "n_aligned": (0, 0, 0)},
            "prefill": {
                "n_audio": audios,
                "n_seq": (
                    1,
                    1,
                    n_rows,
                ),  # a prompt is processed before its row is copied to the beams
                "n_new": (1, min(4, longest), longest // 2),
                "n_at": (1, 2, 8),
                "n_aligned": (0, 0, 0),
            },
            "align": {
                "n_audio": audios,
                "n_seq": audios,
                "n_new": (1, min(64, longest), longest),
                "n_at": (1, min(64, longest), longest),
                "n_aligned": (1, min(64, longest), longest),
            },
            "choose": {"n_seq": rows},
            "advance": {"n_seq": (1, 1, n_rows)},  # greedy: one row per window
            "reorder": {"n_seq": rows, "n_rows": rows},
        }

    def _change(self, ranges: Any, profile: str, dim: str, sizes: tuple[int, int, int]) -> None:
        if profile not in ranges:
            raise OptionError(
                f"profile names {profile!r}; expected one of {', '.join(sorted(ranges))}"
            )
        if dim not in ranges[profile]:
            raise OptionError(
                f"profile {profile!r} has no dimension {dim!r};"
                f" expected one of {', '.join(sorted(ranges[profile]))}"
            )
        ranges[profile][dim] = sizes

    def _check(self, profile: str, dim: str, sizes: tuple[int, int, int], dims: ModelDims) -> None:
        low, typical, high = sizes
        found = f"profile {profile}.{dim} is {low}:{typical}:{high}"
        smallest = 0 if dim == "n_aligned" else 1
        if not smallest <= low <= typical <= high:
            raise OptionError(f"{found}; expected {smallest} <= MIN <= TYPICAL <= MAX")
        n_rows = self.max_batch * self.max_beam
        limits = {
            "n_audio": (self.max_batch, "max_batch"),
            "n_seq": (n_rows, "max_batch times max_beam"),
            "n_rows": (n_rows, "max_batch times max_beam"),
        }
        limit, name = limits.get(dim, (dims.n_text_ctx, "the positions of this model's decoder"))
        if high > limit:
            raise OptionError(f"{found}; expected at most {limit}, {name}")


def covers(
    built: Mapping[str, tuple[Profile, ...]], wanted: Mapping[str, tuple[Profile, ...]]
) -> str | None:
    """A message about the first range in ``wanted`` that ``built`` does not cover, or None."""
    for graph, found in built.items():
        ranges = {profile.name: profile.ranges for profile in found}
        for profile in wanted.get(graph, ()):
            for dim, (low, _, high) in profile.ranges.items():
                least, _, most = ranges.get(profile.name, {}).get(dim, (0, 0, -1))
                if low < least or high > most:
                    return (
                        f"built with {profile.name}.{dim} {least} to {most};"
                        f" {low} to {high} is required"
                    )
    return None


def parse_gpu(text: str) -> str:
    """``sm_86``, ``sm86``, ``8.6`` or ``86`` -> ``sm_86``.

    Raises:
        OptionError: it is none of these.
    """
    match = re.fullmatch(r"(?:sm_?)?(\d+)\.?(\d)", text.strip().lower())
    if match is None:
        raise OptionError(f"gpu is {text!r}; expected a compute capability such as sm_86")
    return f"sm_{match[1]}{match[2]}"
