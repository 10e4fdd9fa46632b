"""Typed errors: each carries a reason code and tells the operator what to do next."""

from __future__ import annotations

from enum import IntEnum

from egs_kernel.model import Reason


class ExitCode(IntEnum):
    """Exit codes of `egs` and `egsd` (docs/commands.md). `egs run` has its own: 126, 127, the program's."""

    DONE = 0
    REFUSED = 1
    USAGE = 2
    HOST_LACKS = 3
    UNREACHABLE = 4


class EgsError(Exception):
    """A failure that an operator can act on.

    Attributes:
        reason: the stable reason code.
        next_step: what to do about it, as an imperative sentence; may be empty.
        exit_code: what a command that ends with this error exits with.
    """

    exit_code: ExitCode = ExitCode.REFUSED

    def __init__(self, reason: Reason, message: str, next_step: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.message} [{self.reason.code}]"


class Refused(EgsError):
    """An authorization that does not verify, or an execution that is not authorized."""


class UsageError(EgsError):
    """Wrong usage or configuration."""

    exit_code = ExitCode.USAGE


class UnsafePath(UsageError):
    """A trust, policy, state or configuration path that others could have changed."""


class HostLacks(EgsError):
    """This host lacks a kernel feature or a package."""

    exit_code = ExitCode.HOST_LACKS


class GateError(HostLacks):
    """The gate cannot be loaded, opened or written."""


class Unreachable(EgsError):
    """The daemon or the authority cannot be reached, or does not speak our protocol."""

    exit_code = ExitCode.UNREACHABLE


class RecordError(EgsError):
    """The record cannot be written, or is not what was written: nothing may be authorized."""


class NoteError(EgsError):
    """A signed note, a checkpoint or a cosignature that is none, or that does not verify."""


class ProofError(EgsError):
    """An inclusion or consistency proof that does not show what it should."""
