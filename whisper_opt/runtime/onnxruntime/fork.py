"""Sessions of ONNX Runtime in a process that was forked.

The destructor of a session joins its threads, and so do those of static objects of ONNX Runtime. A
forked process has these objects, but not the threads: it would wait for them for ever, when a model
is closed there or at its normal exit. So the sessions that a process inherits are never destroyed,
and at its exit the handlers that C libraries registered before the fork are left out, as they are
in the children of ``multiprocessing``. Those of Python, and of the child itself, do run.
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
    """See that a session does no harm to processes forked from this one."""
    _sessions.add(session)


def _after_fork_in_child() -> None:
    inherited = list(_sessions)
    for session in inherited:
        # a reference that nothing holds: a list would be emptied at the end of the process
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
    if inherited:
        with contextlib.suppress(AttributeError, OSError):  # not glibc
            _skip_older_exit_handlers(ctypes.CDLL(None))


def _skip_older_exit_handlers(libc: Any) -> None:
    """End the process when its exit handlers have run but for those registered until now.

    Handlers run in reverse order: first what is registered later, then the flush of C's files, then
    ``_exit`` with the status of the process.
    """
    on_exit, at_exit = libc.on_exit, libc.__cxa_atexit
    on_exit.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    at_exit.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)
    at_exit(ctypes.cast(libc.fflush, ctypes.c_void_p), None, None)


if hasattr(os, "register_at_fork"):  # there is none on Windows, and no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
