"""Comparison of two benchmarks: which configurations became slower."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from whisper_opt.cli.bench.report import error_text, table
from whisper_opt.core.errors import OptionError, WhisperOptError

__all__ = ["Comparison", "compare", "percent"]

_SAME = ("cpu", "cores", "flags", "kernels")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Comparison of the configurations that two files have in common.

    Attributes:
        ratios: new median over old one, by name.
        rows: of the table.
        missing: configurations that only the old file measured.
        added: configurations that only the new file measured.
        warnings: reasons why the ratios may be unreliable.
    """

    ratios: Mapping[str, float]
    rows: Sequence[Sequence[object]]
    missing: Sequence[str]
    added: Sequence[str]
    warnings: Sequence[str]

    def text(self) -> str:
        """The comparison as a table."""
        header = ("", "old s", "new s", "new/old", "old step ms", "new", "old WER/CER", "new")
        lines = [table(header, self.rows)]
        lines += [f"only in the old file: {name}" for name in self.missing]
        lines += [f"only in the new file: {name}" for name in self.added]
        return "\n".join(lines)

    def slower(self, limit: float) -> list[str]:
        """Configurations whose time grew by more than the share ``limit``.

        Raises:
            WhisperOptError: a configuration of the old file is not in the new one.
        """
        if self.missing:
            raise WhisperOptError(
                f"not measured in the new file: {'; '.join(self.missing)}; measure the same"
                " configurations to judge them"
            )
        return [
            f"{name}: {ratio:.3f} times the old time"
            for name, ratio in self.ratios.items()
            if ratio > 1 + limit
        ]


def percent(text: str) -> float:
    """``10%`` as 0.1.

    Raises:
        OptionError: it is not a percentage.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    if match is None:
        raise OptionError(f"{text!r} is not a percentage; expected for example 10%")
    return float(match.group(1)) / 100


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> Comparison:
    """Compare two files by the names of their configurations.

    Raises:
        WhisperOptError: they have none in common.
    """
    before, after = _measured(old), _measured(new)
    both = [name for name in before if name in after]
    if not both:
        raise WhisperOptError(
            f"the files have no configuration in common; the old one has"
            f" {'; '.join(before) or 'none'}, the new one {'; '.join(after) or 'none'}"
        )
    ratios = {name: after[name]["median_s"] / before[name]["median_s"] for name in both}
    return Comparison(
        ratios=ratios,
        rows=[_row(name, before[name], after[name], ratios[name]) for name in both],
        missing=[name for name in before if name not in after],
        added=[name for name in after if name not in before],
        warnings=list(_warnings(old, new)),
    )


def _measured(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {e["name"]: e for e in content["configurations"] if "median_s" in e}


def _row(
    name: str, old: Mapping[str, Any], new: Mapping[str, Any], ratio: float
) -> Sequence[object]:
    steps = (entry["step_ms"].get("p50") for entry in (old, new))
    return (
        name,
        f"{old['median_s']:.3f}",
        f"{new['median_s']:.3f}",
        f"{ratio:.3f}",
        *("-" if step is None else f"{step:.2f}" for step in steps),
        *(error_text(entry["errors"]) for entry in (old, new)),
    )


def _warnings(old: Mapping[str, Any], new: Mapping[str, Any]) -> Sequence[str]:
    found = []
    for name in _SAME:
        values = [content["machine"].get(name) for content in (old, new)]
        if values[0] != values[1]:
            found.append(f"the machines differ: {name} was {values[0]}, is {values[1]}")
    differing = [name for name in ("recordings", "settings") if old.get(name) != new.get(name)]
    return [*found, *(f"the {name} differ" for name in differing)]
