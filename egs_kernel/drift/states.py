"""One governed process as a sweep sees it: everything that is compared, read once, and nothing of what it means."""

from __future__ import annotations

from typing import Final

import msgspec

VDSO: Final = "[vdso]"
"""Code that the kernel gives to every process; a process may write its own copy of it."""


class Mapping(msgspec.Struct, frozen=True, gc=False):
    """Executable memory. `path` as the kernel calls the file, "" for memory of none; `trusted`: root's alone, as are the folders above it.

    `written`: pages of it are not the file's any more. What the kernel gave (`VDSO`) is listed when it was written.
    """

    path: str
    inode: int = 0
    trusted: bool = False
    written: bool = False


class Opened(msgspec.Struct, frozen=True, gc=False):
    """A socket of a process: it listens on `port`, or is connected to that port of somebody else."""

    port: int
    listens: bool
    protocol: str = "tcp"


class Executable(msgspec.Struct, frozen=True, gc=False):
    """The file that a process executes.

    `digest` is its SHA-256 now, "" when it cannot be read; `deleted`: no name leads to it any more; `replaced`: another file
    has the name that it was executed by.
    """

    path: str
    inode: int
    digest: str
    deleted: bool = False
    replaced: bool = False


class ProcessState(msgspec.Struct, frozen=True, kw_only=True):
    """One process at one moment, in the host's numbers.

    Attributes:
        time: when it was read, CLOCK_BOOTTIME nanoseconds.
        pid: its number.
        start_ticks: its start, clock ticks since boot.
        execution: that the gate has for it.
        inherited: it was forked, and has executed nothing itself.
        uids: real, effective, saved and of the file system.
        gids: the same of its group.
        groups: further ones.
        capabilities: effective ones, as the kernel's bits.
        tracer: who traces it; 0: nobody.
        no_new_privs: as attested.
        seccomp_mode: 0, 1 or 2.
        seccomp_filters: how many.
        namespaces: kind and inode of each.
        root: device and inode of its root folder.
        cgroup: its path in the version 2 hierarchy.
        executable: what it executes; None: nothing (a kernel thread, or it is ending).
        code: executable mappings of files, and of none, without those that the kernel makes itself.
        variables: names in its environment that make programs load code.
        sockets: what it listens on and is connected to; None: nobody looked.
        resident: bytes.
        threads: how many.
        open_files: the limit on its descriptors (RLIMIT_NOFILE, hard).
        processor_seconds: the limit on its processor time (RLIMIT_CPU, hard); None: unlimited.
    """

    time: int
    pid: int
    start_ticks: int
    execution: int
    inherited: bool
    uids: tuple[int, int, int, int]
    gids: tuple[int, int, int, int]
    groups: tuple[int, ...] = ()
    capabilities: int
    tracer: int
    no_new_privs: bool
    seccomp_mode: int
    seccomp_filters: int
    namespaces: tuple[tuple[str, int], ...]
    root: tuple[int, int]
    cgroup: str
    executable: Executable | None
    code: tuple[Mapping, ...]
    variables: tuple[str, ...] = ()
    sockets: tuple[Opened, ...] | None = None
    resident: int = 0
    threads: int = 1
    open_files: int | None = None
    processor_seconds: int | None = None
