"""Progress bar of an export."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

__all__ = ["export_bar"]


@contextlib.contextmanager
def export_bar() -> Iterator[Callable[[str, float, float], None]]:
    """A function to call with (stage, done, total); it draws a bar if a terminal is there."""
    from tqdm import tqdm

    bar: tqdm | None = None

    def on_progress(stage: str, done: float, total: float) -> None:
        nonlocal bar
        if bar is None:  # drawn only once there is an export
            bar = tqdm(unit="B", unit_scale=True, disable=None, leave=False)
        bar.set_description(stage, refresh=False)
        bar.total, bar.n = total, done
        bar.refresh()

    try:
        yield on_progress
    finally:
        if bar is not None:
            bar.close()
