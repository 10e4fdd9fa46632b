"""What a launcher is asked to do to itself, step by step: the messages, and their order.

The launcher does them as they come (egs_kernel/apply), each by the module that has the step's name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable


class _Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step"):
    """What every step has: its name."""


class NoNewPrivs(_Step, frozen=True, tag="no_new_privs"):
    """Set no_new_privs: no exec raises privileges any more."""


class Seccomp(_Step, frozen=True, kw_only=True, tag="seccomp"):
    """Install this filter, an array of struct sock_filter."""

    filter: bytes


class Umask(_Step, frozen=True, kw_only=True, tag="umask"):
    """Set the umask."""

    mask: int


class Capabilities(_Step, frozen=True, kw_only=True, tag="capabilities"):
    """Give up all capabilities but these, as the kernel's bits."""

    kept: int


class Limits(_Step, frozen=True, kw_only=True, tag="limits"):
    """Lower resource limits, both halves, to these: by the names of getrlimit(2) in lower case."""

    values: dict[str, int]


Step = NoNewPrivs | Umask | Capabilities | Limits | Seccomp

ORDER: Final[tuple[type[Step], ...]] = (
    NoNewPrivs,
    Umask,
    Capabilities,
    Limits,
    Seccomp,
)
"""Seccomp comes last: it may forbid what the others need."""


def in_order(steps: Iterable[Step]) -> tuple[Step, ...]:
    """The steps in the order in which they are done; those of one kind stay as they are."""
    return tuple(sorted(steps, key=lambda step: ORDER.index(type(step))))
