"""The constraint word `drift`: what is done when the program is not any more what was authorized, and what is expected of it."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, field

from egs_kernel.artifact.reach import Port
from egs_kernel.artifact.strict import Strict
from egs_kernel.findings import HOST_FINDINGS, Finding, Response

ResponseWord = Literal["alert", "quarantine", "suspend", "terminate"]
FindingName = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^(?![\s\S]*[^a-z_])[a-z]")]
Ports = Annotated[tuple[Port, ...], Meta(max_length=256)]

_NAMES: Final = frozenset(finding.value for finding in Finding if finding not in HOST_FINDINGS)


class DriftConstraint(Strict, frozen=True):
    """What is done about findings, each by its name (`on`); about the others, what the host's drift.toml says.

    `listen` and `connect` are the TCP and UDP ports on which it is expected to listen, and to which it is expected to be
    connected: everything else is a finding. A list that is missing expects whatever comes.
    """

    on: Annotated[dict[FindingName, ResponseWord], Meta(max_length=64)] = field(default_factory=dict)
    listen: Ports | None = None
    connect: Ports | None = None

    def __post_init__(self) -> None:
        if not self.on and self.listen is None and self.connect is None:
            raise ValueError("drift says nothing: leave it out")
        for name in self.on:
            if name not in _NAMES:
                raise ValueError(f"on: {name} is no finding about a program")

    @property
    def needs(self) -> tuple[str, ...]:
        """What a host must be able to enforce: somebody must be watching."""
        return ("drift",)

    @property
    def at_launch(self) -> bool:
        """Whether it takes a launcher: the monitor alone sees to it."""
        return False

    def response(self, finding: Finding) -> Response | None:
        """What was signed for a finding; None: nothing."""
        word = self.on.get(finding.value)
        return None if word is None else Response[word.upper()]
