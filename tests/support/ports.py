"""Ports of 127.0.0.1 on which nothing listens."""

from __future__ import annotations

import contextlib
import socket

__all__ = ["free_port", "free_ports"]


def free_ports(n: int) -> list[int]:
    """Different ports that are free now; another program may take one before it is used."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in found]


def free_port() -> int:
    """One of :func:`free_ports`."""
    return free_ports(1)[0]
