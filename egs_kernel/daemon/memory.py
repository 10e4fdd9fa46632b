"""The daemon's memory: one heap, and what only its start needed goes back to the kernel."""

from __future__ import annotations

import ctypes
import gc
import sys
from importlib import import_module
from types import ModuleType
from typing import Final

_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_LARGE: Final = 128 * 1024


_ANNOTATED: Final = ("SSLContext", "TLSVersion", "PROTOCOL_TLS_CLIENT", "PROTOCOL_TLS_SERVER")


def without_tls() -> None:
    """Keep `ssl`, 1.2 MB, out of a process that speaks over Unix sockets alone; to be called before anything imports it.

    asyncio does without it. prometheus_client only names it, in the signatures of its own servers and clients, which are not
    called here. Whatever imports it later gets the real one (PyJWT does, at the first SVID).
    """
    absent: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment] # None: importing it fails (import system, 5.3.1)
    absent["ssl"] = None
    import_module("asyncio")
    named = ModuleType("ssl")
    named.__dict__.update(dict.fromkeys(_ANNOTATED))
    absent["ssl"] = named
    import_module("prometheus_client")
    del sys.modules["ssl"]


def keep_small() -> None:
    """One heap for all threads, large blocks outside of it: 2.5 MB less after some thousand executions.

    glibc gives each thread a heap of its own, so that threads need not wait for each other; ours wait for the
    interpreter's lock anyway. Other C libraries have no such heaps, and no mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGE)


def give_back() -> None:
    """Return free memory to the kernel, once: a daemon idles for weeks with what it took to compile and to recall."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc; others keep less
        libc.malloc_trim(0)
