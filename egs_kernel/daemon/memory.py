"""The daemon's memory: one heap, and what only its start needed goes back to the kernel."""

from __future__ import annotations

import ctypes
import gc
from typing import Final

_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_LARGE: Final = 128 * 1024


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
