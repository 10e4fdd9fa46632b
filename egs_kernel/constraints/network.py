"""`constraints.network` → the part that a system call filter must enforce.

A network namespace, or Landlock's TCP ports, leave gaps: families of sockets that know no namespaces (vsock), everything
that is neither TCP nor UDP, connections by TCP Fast Open, and sockets made by io_uring. This filter refuses those.
Every installed filter must permit a call, so this one and that of `constraints.syscalls` need not know each other.
"""

from __future__ import annotations

import errno
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from egs_kernel.constraints.landlock import NETWORK
from egs_kernel.constraints.libseccomp import export, load_library
from egs_kernel.errors import Refused
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egs_kernel.artifact.reach import NetworkConstraint

# linux/socket.h, linux/net.h, linux/in.h
_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16
_FAMILIES: Final = (_UNIX, _INET, _INET6, _NETLINK)
"""In a namespace of its own they reach what is in it. AF_NETLINK lists interfaces and addresses."""
_STREAM, _DGRAM = 1, 2
_TYPES: Final = 0xF  # SOCK_TYPE_MASK: above it are SOCK_CLOEXEC and SOCK_NONBLOCK
_DEFAULT, _TCP, _UDP = 0, 6, 17
_MSG_FASTOPEN: Final = 0x20000000

_FLAGS_OF: Final = {"sendto": 3, "sendmsg": 2, "sendmmsg": 3}
"""Which argument of a sending call has its flags. The kernel takes them as 32 bits."""
_RINGS: Final = ("io_uring_enter", "io_uring_register", "io_uring_setup")


@lru_cache(maxsize=16)
def compile_socket_filter(mode: str, *, udp: bool, listens: bool) -> bytes:
    """The `struct sock_filter` array that belongs to a network constraint; the same bytes each time.

    Args:
        mode: of the constraint.
        udp: whether UDP is allowed, in mode ports.
        listens: whether it may listen on any port, in mode ports. Landlock does not ask when a socket listens that was
            bound to none: the kernel gives it one.

    Raises:
        Refused: this host's libseccomp is missing or too old.
    """
    seccomp = load_library(NETWORK)
    try:
        program = seccomp.SyscallFilter(seccomp.ALLOW)
        program.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
        refusal = seccomp.ERRNO(errno.EPERM)
        for name in _RINGS:
            program.add_rule_exactly(refusal, name)
        program.add_rule_exactly(refusal, "socketpair", seccomp.Arg(0, seccomp.NE, _UNIX))
        for rule in _sockets(seccomp, mode, udp=udp):
            program.add_rule_exactly(refusal, "socket", *rule)
        if mode == "ports":
            for name, argument in _FLAGS_OF.items():
                opens = seccomp.Arg(argument, seccomp.MASKED_EQ, _MSG_FASTOPEN, _MSG_FASTOPEN)
                program.add_rule_exactly(refusal, name, opens)
            if not listens:
                program.add_rule_exactly(refusal, "listen")
        return export(program)
    except OSError as error:
        raise Refused(
            Reason.CONSTRAINT_UNENFORCEABLE,
            f"{NETWORK}: libseccomp cannot compile it: {error.strerror}",
            "Update libseccomp.",
        ) from error


def filter_of(network: NetworkConstraint) -> bytes:
    """The filter of a constraint.

    Raises:
        Refused: this host's libseccomp is missing or too old.
    """
    return compile_socket_filter(network.mode, udp=network.udp == "allowed", listens=bool(network.bind))


def _sockets(seccomp: Any, mode: str, *, udp: bool) -> Iterator[tuple[Any, ...]]:
    """The sockets that are refused, each as conditions on socket(family, type, protocol).

    What is compared as 64 bits and taken by the kernel as 32 is refused when the upper half is not empty.
    """
    for family in _others(seccomp, 0, _FAMILIES):
        yield (family,)
    if mode == "none":
        return
    yield seccomp.Arg(0, seccomp.EQ, _NETLINK), seccomp.Arg(2, seccomp.NE, _DEFAULT)
    permitted = {_STREAM: (_DEFAULT, _TCP)} | ({_DGRAM: (_DEFAULT, _UDP)} if udp else {})
    for family in (_INET, _INET6):
        of_family = seccomp.Arg(0, seccomp.EQ, family)
        for kind in range(_TYPES + 1):
            of_kind = seccomp.Arg(1, seccomp.MASKED_EQ, _TYPES, kind)
            if kind not in permitted:
                yield of_family, of_kind
                continue
            for protocol in _others(seccomp, 2, permitted[kind]):
                yield of_family, of_kind, protocol


def _others(seccomp: Any, argument: int, values: tuple[int, ...]) -> Iterator[Any]:
    """Conditions of which one holds when the argument is none of the values (ascending)."""
    for value in range(values[-1]):
        if value not in values:
            yield seccomp.Arg(argument, seccomp.EQ, value)
    yield seccomp.Arg(argument, seccomp.GT, values[-1])
