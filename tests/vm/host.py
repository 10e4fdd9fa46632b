"""What the machines need of the host: tools, a cache, commands that have to succeed, and a word to the person."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[2]
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "egs-kernel"
TOOLS: Final = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mkfs.ext4": "e2fsprogs",
    "cpio": "cpio",
    "depmod": "kmod",
    "busybox": "busybox-static",
}
"""Command and the Debian package that has it: the list `vm` of scripts/setup."""
KEPT_SECONDS: Final = 14 * 86400
_MADE: Final = r"(boot|bookworm|debian|system|vm|wheels)-.*"
_telling = threading.Lock()


class Lacking(Exception):
    """This host cannot do it; the message says what is missing, and how to get it."""


def need_tools() -> None:
    """Return when this host can make images and start machines.

    Raises:
        Lacking: it cannot.
    """
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        raise Lacking(f"needs {', '.join(missing)}: run scripts/setup --vm")
    if os.geteuid() != 0:
        raise Lacking("needs root, to make a file system with files of root in it")
    if sys.version_info[:2] != (3, 11):
        raise Lacking("needs Python 3.11, Debian 12's own, to download what fits: use .venv/bin/python")


def must(
    *command: str,
    environment: Mapping[str, str] | None = None,
    seconds: float = 120,
    folder: Path | None = None,
) -> str:
    """Run a command that has to succeed; what it said.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    done = subprocess.run(
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        timeout=seconds,
        cwd=folder,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)[:200]} failed ({done.returncode}):\n{done.stdout[-4000:]}")
    return done.stdout


def say(line: str) -> None:
    """One line to the person who runs this; from any thread."""
    with _telling:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def digest(*parts: str | bytes) -> str:
    """A short name for these inputs."""
    text = b"\0".join(part.encode() if isinstance(part, str) else part for part in parts)
    return hashlib.sha256(text).hexdigest()[:12]


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, made once: `make` fills it, and only when it succeeds does it get its name. Under `cache_lock`."""
    folder = CACHE / name
    if not folder.is_dir():
        part = CACHE / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        make(part)
        part.rename(folder)
    os.utime(folder)
    return folder


def forget_the_unused() -> None:
    """Remove what nobody has used for a while from the cache."""
    now = time.time()
    for path in CACHE.iterdir():
        if re.fullmatch(_MADE, path.name) and now - path.stat().st_mtime > KEPT_SECONDS:
            say(f"removing {path}, unused for long")
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def file_system(path: Path, tree: Path, size: str) -> None:
    """Make an ext4 of a tree; `size` is only what it may grow to."""
    must("truncate", f"--size={size}", str(path))
    must(
        "mkfs.ext4",
        "-q",
        "-E",
        "lazy_itable_init=0,lazy_journal_init=0",
        "-d",
        str(tree),
        str(path),
        seconds=300,
    )


@contextlib.contextmanager
def cache_lock() -> Iterator[None]:
    """One of those who run this makes something in the cache; the others wait, and then find it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def workshop() -> Iterator[Path]:
    """A folder on a disk with room; gone afterwards."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vm-", dir=CACHE) as folder:
        yield Path(folder)
