"""`constraints.filesystem` and `constraints.network` → what one launch may reach, and what a host must have for that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from egs_kernel.constraints import landlock, network

if TYPE_CHECKING:
    from egs_kernel.artifact.statement import Constraints

SINCE_ABI: Final = {
    "filesystem": landlock.LEAST_ABI,
    "filesystem.truncate": landlock.NEEDS_ABI[landlock.Access.TRUNCATE],
    "filesystem.deviceControl": landlock.NEEDS_ABI[landlock.Access.IOCTL_DEV],
    "network.ports": landlock.PORTS_NEED_ABI,
    "network.abstract": landlock.SCOPES_NEED_ABI,
    "process.signals": landlock.SCOPES_NEED_ABI,
}
"""What constraints need of Landlock, and the first version that has it."""


@dataclass(frozen=True)
class Reach:
    """What a launch may reach.

    Attributes:
        ruleset: files and TCP ports; None: all of them.
        own_network: it gets a network namespace of its own.
        no_sockets: it must not be handed a network by its caller.
        filter: the system call filter that belongs to its network; None: none does.
    """

    ruleset: landlock.Plan | None = None
    own_network: bool = False
    no_sockets: bool = False
    filter: bytes | None = None

    @property
    def unlimited(self) -> bool:
        """Whether there is nothing to do."""
        return self.ruleset is None and not self.no_sockets


def reach_of(constraints: Constraints, abi: int) -> Reach:
    """What the constraints permit to reach, on a kernel with this Landlock.

    Raises:
        Refused: that cannot be enforced here.
    """
    word = constraints.network
    process = constraints.process
    own_signals = process is not None and process.signals == "own"
    return Reach(
        ruleset=landlock.plan(constraints.filesystem, word, abi, own_signals=own_signals),
        own_network=word is not None and word.mode == "none",
        no_sockets=word is not None,
        filter=None if word is None else network.filter_of(word),
    )


def enforceable(abi: int, *, namespaces: bool) -> frozenset[str]:
    """What of these words a host can enforce. Pure.

    Args:
        abi: of its Landlock; 0: it has none.
        namespaces: whether the daemon may give launchers network namespaces.
    """
    by_landlock = {need for need, since in SINCE_ABI.items() if abi >= since}
    return frozenset(by_landlock | ({"network.none"} if namespaces else set()))
