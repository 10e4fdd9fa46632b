"""The daemon's memory: what only its start needed goes back to the kernel."""

from __future__ import annotations

import ctypes
import gc


def give_back() -> None:
    """Return free memory to the kernel, once: a daemon idles for weeks with what it took to compile and to recall."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc; others keep less
        libc.malloc_trim(0)
