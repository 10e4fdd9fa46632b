"""A Landlock ruleset in the kernel: made by the daemon, and put upon a launcher that is held.

The kernel shows no process's Landlock domain, so nobody could read back what a launcher restricted itself to. Therefore
the daemon makes the ruleset, hands the launcher a descriptor of it, and has it call landlock_restrict_self(2) with that
very ruleset (`injection.py`): the kernel's answer to that call is the attestation. No process can leave a domain.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING, Final

from egs_kernel.constraints.injection import share_nothing
from egs_kernel.constraints.landlock import FILESYSTEM, LOGS_NEED_ABI, ON_FILES, Access, PathRule, Plan
from egs_kernel.constraints.proc import descriptors, not_attested
from egs_kernel.errors import Refused
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from egs_kernel.constraints.injection import Injected

# Numbers that are the same on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_OPENAT2: Final = 437
_CREATE_RULESET_VERSION: Final = 1
_PATH_BENEATH, _NET_PORT = 1, 2
_LOG_NEW_EXEC_ON: Final = 1 << 1
"""Refusals are logged for what the launcher executes; by default only for the program that restricted itself."""
# linux/openat2.h
_NO_MAGICLINKS, _NO_SYMLINKS, _IN_ROOT = 0x02, 0x04, 0x10

# On x86-64, which `injection` is for.
_KCMP, _PRCTL, _CLOSE = 312, 157, 3
_PR_SET_NO_NEW_PRIVS: Final = 38
_LAYERS_FULL: Final = -errno.E2BIG

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_quick = ctypes.PyDLL(None, use_errno=True)
"""For calls that wait for nothing: our other threads do not go on meanwhile. To let them costs more, some hundred times for a ruleset."""
_quick.syscall.restype = ctypes.c_long


class _RulesetAttributes(ctypes.Structure):
    """struct landlock_ruleset_attr. Older kernels take the rest of it when that is zero."""

    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    """struct landlock_path_beneath_attr."""

    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


class _NetPort(ctypes.Structure):
    """struct landlock_net_port_attr."""

    _fields_ = (("allowed_access", ctypes.c_uint64), ("port", ctypes.c_uint64))


class _OpenHow(ctypes.Structure):
    """struct open_how."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def kernel_abi() -> int:
    """The version of this kernel's Landlock; 0: it has none, or it is switched off."""
    found = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_CREATE_RULESET_VERSION))
    return max(int(found), 0)


def create(plan: Plan, root: int, programs: tuple[int, ...]) -> int:
    """Make the ruleset.

    Args:
        plan: what it holds.
        root: a descriptor of the root folder that the launcher has: paths are resolved in it.
        programs: descriptors of what will be executed: permitted, whatever the plan says.

    Returns:
        A descriptor of the ruleset; the caller closes it.

    Raises:
        Refused: a path that the artifact names is not there, or is reached through a symbolic link.
    """
    attributes = _RulesetAttributes(int(plan.handled), int(plan.handled_ports), int(plan.scoped))
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    ruleset = _checked(_quick.syscall(_CREATE_RULESET, ctypes.byref(attributes), size, ctypes.c_uint32(0)))
    try:
        for rule in plan.paths:
            _permit_path(ruleset, root, rule)
        if plan.handled:
            for program in programs:
                _permit(ruleset, program, Access.EXECUTE | Access.READ_FILE)
        for port, access in plan.ports:
            _add(ruleset, _NET_PORT, _NetPort(int(access), port))
    except BaseException:
        os.close(ruleset)
        raise
    return ruleset


def impose(process: Injected, ruleset: int, abi: int, *, no_new_privs: bool) -> None:
    """Have the held process restrict itself to the ruleset, of which it was sent a descriptor. Irrevocable.

    Args:
        process: it.
        ruleset: our descriptor of it.
        abi: of the kernel.
        no_new_privs: whether it has that, as the kernel said since it is held. Nobody can take it back.

    Raises:
        Refused: it did not take the descriptor, or the kernel did not do it.
    """
    share_nothing(process)  # whoever shares its table of descriptors could exchange the descriptor
    descriptor = _descriptor_of(process.pid, ruleset)
    if not no_new_privs:
        _require(process, process.call(_PRCTL, _PR_SET_NO_NEW_PRIVS, 1), "no_new_privs")
    flags = _LOG_NEW_EXEC_ON if abi >= LOGS_NEED_ABI else 0
    answer = process.call(_RESTRICT_SELF, descriptor, flags)
    if answer == _LAYERS_FULL:
        raise not_attested(process.pid, "has 16 Landlock domains already", "Start it from outside of them.")
    _require(process, answer, "landlock_restrict_self")
    _require(process, process.call(_CLOSE, descriptor), "close")


def _permit_path(ruleset: int, root: int, rule: PathRule) -> None:
    try:
        descriptor = _open_in(root, rule)
    except OSError as error:
        if not rule.field and error.errno in (errno.ENOENT, errno.ENOTDIR):
            return
        raise _unusable(rule, error) from error
    try:
        _permit(ruleset, descriptor, rule.access)
    except OSError as error:
        raise _unusable(rule, error) from error
    finally:
        _quick.close(descriptor)  # of a path alone


def _open_in(root: int, rule: PathRule) -> int:
    """What the path is for a process with this root. Those of the base are links on some systems, which root has made."""
    resolve = _IN_ROOT | _NO_MAGICLINKS | (_NO_SYMLINKS if rule.field else 0)
    how = _OpenHow(os.O_PATH | os.O_CLOEXEC, 0, resolve)
    path = os.fsencode(rule.path)
    return _checked(
        _libc.syscall(_OPENAT2, root, path, ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)))
    )


def _permit(ruleset: int, descriptor: int, access: Access) -> None:
    try:
        _permit_beneath(ruleset, descriptor, access)
    except OSError as error:  # the kernel takes rights over a folder's names for no file
        if error.errno != errno.EINVAL or not access & ~ON_FILES:
            raise
        _permit_beneath(ruleset, descriptor, access & ON_FILES)


def _permit_beneath(ruleset: int, descriptor: int, access: Access) -> None:
    if access:
        _add(ruleset, _PATH_BENEATH, _PathBeneath(int(access), descriptor))


def _add(ruleset: int, kind: int, attributes: _PathBeneath | _NetPort) -> None:
    _checked(_quick.syscall(_ADD_RULE, ruleset, kind, ctypes.byref(attributes), ctypes.c_uint32(0)))


def _checked(answer: int) -> int:
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return answer


def _unusable(rule: PathRule, error: OSError) -> Refused:
    advice = {
        errno.ENOENT: "Create it, or issue an artifact without it.",
        errno.ELOOP: "Have the artifact name the path that the link leads to.",
    }
    problem = "is reached through a symbolic link" if error.errno == errno.ELOOP else error.strerror
    return Refused(
        Reason.CONSTRAINT_UNENFORCEABLE,
        f"{rule.field or FILESYSTEM}: {rule.path}: {problem}",
        advice.get(error.errno or 0, "Have the artifact name files and folders that are there."),
    )


def _descriptor_of(pid: int, ruleset: int) -> int:
    """The launcher's descriptor of this very ruleset; the kernel compares."""
    for descriptor, name in descriptors(pid):
        if "landlock" in name and _same_file(pid, descriptor, ruleset):
            return descriptor
    raise not_attested(pid, "did not keep the Landlock ruleset that it was sent")


def _same_file(pid: int, theirs: int, ours: int) -> bool:
    return int(_libc.syscall(_KCMP, os.getpid(), pid, 0, ctypes.c_ulong(ours), ctypes.c_ulong(theirs))) == 0


def _require(process: Injected, answer: int, what: str) -> None:
    if answer < 0:
        raise not_attested(process.pid, f"cannot be restricted: {what}: {os.strerror(-answer)}")
