"""`constraints.process`, and what `intent` says of folder and environment → what the launcher does, what must hold."""

from __future__ import annotations

import errno
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from egs_kernel.artifact.limits import CAPABILITIES
from egs_kernel.checks.intent import check_environment
from egs_kernel.constraints.attest import Part, Stopped
from egs_kernel.constraints.libseccomp import export, load_library
from egs_kernel.constraints.proc import environment, not_attested, working_directory
from egs_kernel.constraints.steps import Capabilities, Umask
from egs_kernel.errors import Refused
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from egs_kernel.artifact.statement import DeclaredIntent

CHILDREN: Final = "constraints.process.children"
ALL_CAPABILITIES: Final = (1 << len(CAPABILITIES)) - 1
_SETPCAP: Final = 1 << CAPABILITIES.index("setpcap")
_CLONE_THREAD: Final = 0x00010000  # linux/sched.h
_SETS: Final = ("CapInh", "CapPrm", "CapEff", "CapAmb")


def umask_part(umask: str) -> Part:
    """The umask. Pure."""
    wanted = int(umask, 8)

    def check(process: Stopped) -> None:
        found = process.status.number("Umask", base=8)
        if found != wanted:
            raise not_attested(process.pid, f"has the umask {found:04o} instead of {wanted:04o}")

    return Part(Umask(mask=wanted), installed=check, executed=check)


def capabilities_part(kept: int) -> Part:
    """No capabilities but these, now and later: no_new_privs keeps an exec from giving any. Pure."""

    def check(process: Stopped) -> None:
        found = 0
        for name in _SETS:
            found |= process.status.number(name, base=16)
        if process.before.capabilities & _SETPCAP:  # who has it can narrow the bounding set
            found |= process.status.number("CapBnd", base=16) & ALL_CAPABILITIES
        if found & ~kept:
            raise not_attested(process.pid, f"has capabilities that are not signed: {found & ~kept:#x}")

    return Part(Capabilities(kept=kept), installed=check, executed=check)


def intent_part(declared: DeclaredIntent) -> Part | None:
    """Working directory and environment, in the new image; None when nothing is said of them. Pure."""
    if declared.cwd is None and declared.environment is None:
        return None

    def check(process: Stopped) -> None:
        if declared.cwd is not None and working_directory(process.pid) != declared.cwd:
            raise not_attested(process.pid, f"left its working directory, which is to be {declared.cwd}")
        check_environment(declared.environment, environment(process.pid))

    return Part(executed=check)


@lru_cache(maxsize=1)
def childless_filter() -> bytes:
    """The seccomp filter of `children = "none"`: threads can be made, processes cannot.

    Raises:
        Refused: this host's libseccomp is missing or too old.
    """
    seccomp = load_library(CHILDREN)
    program = seccomp.SyscallFilter(seccomp.ALLOW)
    program.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
    try:
        for name in ("fork", "vfork"):  # which newer architectures do not have
            if seccomp.resolve_syscall(seccomp.Arch.NATIVE, name) >= 0:
                program.add_rule_exactly(seccomp.ERRNO(errno.EPERM), name)
        # Its flags lie in memory, which a filter does not see; the C library takes clone instead.
        program.add_rule_exactly(seccomp.ERRNO(errno.ENOSYS), "clone3")
        process = seccomp.Arg(0, seccomp.MASKED_EQ, _CLONE_THREAD, 0)
        program.add_rule_exactly(seccomp.ERRNO(errno.EPERM), "clone", process)
        return export(program)
    except OSError as error:
        raise Refused(
            Reason.CONSTRAINT_UNENFORCEABLE,
            f"{CHILDREN}: libseccomp cannot compile it: {error.strerror}",
            "Update libseccomp.",
        ) from error
