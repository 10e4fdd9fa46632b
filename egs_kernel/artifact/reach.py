"""The constraint words `filesystem` and `network`, as types with every rule that needs no context."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from egs_kernel.artifact.strict import PATH, Strict

# In its one form: no empty, `.` or `..` part, and no slash at the end.
RootPath = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=4095,
        pattern=PATH,
    ),
]
Port = Annotated[int, Meta(ge=1, le=65535)]


class FilesystemConstraint(Strict, frozen=True):
    """Which files it may use: those below the roots, and no others.

    `write` does not include `read`; `execute` does. `base` adds what a dynamically linked program needs. `degrade`
    names what may stay unrestricted on a kernel that cannot restrict it.
    """

    base: Literal["system"] | None = None
    read: Annotated[tuple[RootPath, ...], Meta(max_length=256)] = ()
    write: Annotated[tuple[RootPath, ...], Meta(max_length=256)] = ()
    execute: Annotated[tuple[RootPath, ...], Meta(max_length=256)] = ()
    degrade: tuple[Literal["truncate", "device-control"], ...] = ()

    def __post_init__(self) -> None:
        if self.base is None and not (self.read or self.write or self.execute):
            raise ValueError("filesystem needs at least one of base, read, write, execute")
        for name in ("read", "write", "execute", "degrade"):
            _once(name, getattr(self, name))

    @property
    def needs(self) -> tuple[str, ...]:
        """What a host must be able to enforce."""
        parts = {"truncate": "filesystem.truncate", "device-control": "filesystem.deviceControl"}
        return ("filesystem", *(need for word, need in parts.items() if word not in self.degrade))


class NetworkConstraint(Strict, frozen=True):
    """Which network it may use.

    `none`: only a loopback of its own. `ports`: TCP, by port, and UDP if `udp` says so. `abstract`: to which abstract Unix
    sockets it may connect, `own`: those that it, or what it started, has made.
    """

    mode: Literal["none", "ports"]
    connect: Annotated[tuple[Port, ...], Meta(max_length=256)] = ()
    bind: Annotated[tuple[Port, ...], Meta(max_length=256)] = ()
    udp: Literal["allowed", "refused"] | None = None
    abstract: Literal["own"] | None = None

    def __post_init__(self) -> None:
        if self.mode == "none" and any((self.connect, self.bind, self.udp, self.abstract)):
            raise ValueError("network of mode none has no connect, bind, udp or abstract")
        if self.mode == "ports" and not self.connect and not self.bind and self.udp != "allowed":
            raise ValueError("network of mode ports allows nothing: use mode none")
        _once("connect", self.connect)
        _once("bind", self.bind)

    @property
    def needs(self) -> tuple[str, ...]:
        """What a host must be able to enforce."""
        return (f"network.{self.mode}", *(("network.abstract",) if self.abstract else ()))


def _once(name: str, values: tuple[object, ...]) -> None:
    """Each value once; otherwise somebody meant another one."""
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{name} lists {value} twice")
