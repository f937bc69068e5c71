"""Sessions of ONNX Runtime in forked processes.

The destructors of sessions and of static objects of ONNX Runtime join threads. A forked process has
these objects but not the threads: it would wait forever when it closes a model or exits. Therefore
a child never destroys inherited sessions, and its exit skips the handlers that C libraries
registered before the fork, as in children of ``multiprocessing``. Exit handlers of Python and those
that the child registers do run.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import weakref
from typing import Any

__all__ = ["keep_after_fork"]

_sessions: weakref.WeakSet[Any] = weakref.WeakSet()


def keep_after_fork(session: Any) -> None:
    """Never destroy this session in processes forked from this one."""
    _sessions.add(session)


def _after_fork_in_child() -> None:
    inherited = list(_sessions)
    for session in inherited:
        # a reference without an owner: a list would be cleared at the end of the process
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
    if inherited:
        with contextlib.suppress(AttributeError, OSError):  # not glibc
            _skip_older_exit_handlers(ctypes.CDLL(None))


def _skip_older_exit_handlers(libc: Any) -> None:
    """At exit, skip the handlers that were registered before this call.

    Handlers run in reverse order: those registered later, then the flush of C's files, then
    ``_exit`` with the status of the process.
    """
    on_exit, at_exit = libc.on_exit, libc.__cxa_atexit
    on_exit.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    at_exit.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)
    at_exit(ctypes.cast(libc.fflush, ctypes.c_void_p), None, None)


if hasattr(os, "register_at_fork"):  # missing on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
