"""The constraint words `resources` and `process`, as types with every rule that needs no context."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from egs_kernel.artifact.strict import Strict

_CAPABILITIES: Final = (
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service "
    "net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct "
    "sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap "
    "mac_override mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore"
)
CAPABILITIES: Final = tuple(_CAPABILITIES.split())
"""linux/capability.h: the position is the number."""

_MEBIBYTE: Final = 2**20
_YEAR: Final = 366 * 24 * 3600

Bytes = Annotated[int, Meta(ge=0, le=2**50)]
Seconds = Annotated[int, Meta(ge=1, le=10 * _YEAR)]
CapabilityName = Annotated[str, Meta(min_length=3, max_length=32, pattern=r"^(?![\s\S]*[^a-z_])")]
Umask = Annotated[str, Meta(min_length=4, max_length=4, pattern=r"^(?![\s\S]*[^0-7])0")]


class _Word(Strict, frozen=True):
    """A constraint word whose fields are all optional."""

    @property
    def words(self) -> tuple[str, ...]:
        """The fields in use."""
        return tuple(word for word in self.__struct_fields__ if getattr(self, word) is not None)


class ResourceConstraint(_Word, frozen=True):
    """What the execution may use at most. Sizes are bytes, times are seconds.

    Of the whole tree that it starts: `memory` (swap is none), `processes` (threads count), `cpu_percent` (of one
    processor) and `wall_seconds`. Of each of its processes: the others. `core_size` may be 0.
    """

    memory: Annotated[int, Meta(ge=4 * _MEBIBYTE, le=2**50)] | None = None
    processes: Annotated[int, Meta(ge=1, le=2**22)] | None = None
    cpu_percent: Annotated[int, Meta(ge=1, le=100 * 8192)] | None = None
    wall_seconds: Seconds | None = None
    cpu_seconds: Seconds | None = None
    address_space: Annotated[int, Meta(ge=16 * _MEBIBYTE, le=2**50)] | None = None
    open_files: Annotated[int, Meta(ge=8, le=2**20)] | None = None
    file_size: Bytes | None = None
    core_size: Bytes | None = None

    def __post_init__(self) -> None:
        if not self.words:
            raise ValueError("resources limits nothing: leave it out")

    @property
    def needs(self) -> tuple[str, ...]:
        """What a host must be able to enforce."""
        of_the_tree = {
            "resources.memory": self.memory,
            "resources.processes": self.processes,
            "resources.cpuPercent": self.cpu_percent,
            "resources.wallSeconds": self.wall_seconds,
        }
        return ("resources", *(name for name, value in of_the_tree.items() if value is not None))

    @property
    def limits_tree(self) -> bool:
        """Whether it takes a cgroup of the execution's own."""
        return len(self.needs) > 1


class ProcessConstraint(_Word, frozen=True):
    """What the program may become, and what it may start.

    `children`: none, no process and no further exec; listed, the artifact's subjects of the role child and no
    others; any-authorized, whatever has an authorization of its own, which is what holds without the word.
    `capabilities`: the only ones that any of its processes may have. `signals`: own, to no process but those that it
    started.
    """

    children: Literal["none", "listed", "any-authorized"] | None = None
    new_privileges: Literal["refused"] | None = None
    capabilities: (
        Literal["none"] | Annotated[tuple[CapabilityName, ...], Meta(min_length=1, max_length=64)] | None
    ) = None
    umask: Umask | None = None
    signals: Literal["own"] | None = None

    def __post_init__(self) -> None:
        if not self.words:
            raise ValueError("process constrains nothing: leave it out")
        named = self.capabilities if isinstance(self.capabilities, tuple) else ()
        for index, name in enumerate(named):
            if name not in CAPABILITIES:
                raise ValueError(f"capabilities[{index}]: {name!r} is no capability")
            if name in named[:index]:
                raise ValueError(f"capabilities[{index}]: {name!r} is listed twice")

    @property
    def needs(self) -> tuple[str, ...]:
        """What a host must be able to enforce."""
        signals = ("process.signals",) if self.signals else ()
        return (*signals, "process") if self.at_launch else ()

    @property
    def kept(self) -> int | None:
        """The capabilities that may stay, as the kernel's bits; None: all."""
        if self.capabilities is None:
            return None
        named = () if self.capabilities == "none" else self.capabilities
        return sum(1 << CAPABILITIES.index(name) for name in named)

    @property
    def at_launch(self) -> bool:
        """Whether it takes a launcher: the gate alone sees to who starts what."""
        return self.children == "none" or bool(
            self.new_privileges or self.capabilities or self.umask or self.signals
        )
