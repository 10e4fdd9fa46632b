"""A governed program for tests: Python under another name, so that its arguments are free."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.running import Running

PYTHON: Final = str(Path(sys.executable).resolve())
SIGSYS: Final = -31
"""How a process ends whose call is killed, as subprocess has it."""

HEAD: Final = """
import ctypes, errno, hashlib, mmap, os, socket, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
def told(what):
    try:
        result = what()
    except OSError as error:
        result = errno.errorcode[error.errno]
    print(result, flush=True)
"""
"""What the code of tests may use; `told` says what came of a call, or the name of its error."""
INT80: Final = """
code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
# push rbx; mov eax, NUMBER; int 0x80; pop rbx; ret
code.write(bytes([0x53, 0xB8]) + (NUMBER).to_bytes(4, "little") + bytes([0xCD, 0x80, 0x5B, 0xC3]))
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))())
"""
"""Makes a call of i386: replace NUMBER. Its arguments are whatever is in the registers."""


def add_worker(running: Running) -> None:
    """Put the program into the folder of a running system: `worker`, a name that no interpreter has."""
    running.copy(PYTHON, "worker")


def artifact_of(running: Running, constraints: str) -> Path:
    """An artifact for the worker with these constraints, or without any; issued once."""
    name = f"{hashlib.sha256(constraints.encode()).hexdigest()}.json"
    if not (running.folder / name).exists():
        file = running.folder / "constraints.toml"
        file.write_text(constraints)
        more = ("--constraints", str(file)) if constraints else ()
        running.issue(running.folder / "worker", *more, name=name)
    return running.folder / name


def run(running: Running, constraints: str, source: str) -> subprocess.CompletedProcess[str]:
    """Run Python code as a governed program, with these constraints or without any."""
    artifact, worker = artifact_of(running, constraints), str(running.folder / "worker")
    return running.run("--artifact", str(artifact), "--", worker, "-I", "-c", HEAD + source)


def said(running: Running, constraints: str, source: str) -> list[str]:
    """What it printed, when it ended well."""
    done = run(running, constraints, source)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
