"""The words of drift: what may be found of a running execution or of the host, how grave it is, and what is done about it.

This module imports nothing of ours. The names are part of the formats of the record, of the artifact and of drift.toml:
one is never used again for something else.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Final, Literal


class Finding(Enum):
    """What is not as it was authorized, or as it was before. Of a process, unless it says otherwise."""

    PROGRAM_CHANGED = "program_changed"  # the content of its executable file is not the authorized one
    PROGRAM_REPLACED = "program_replaced"  # the path that it was executed by names another file now
    PROGRAM_DELETED = "program_deleted"
    SUBJECT_CHANGED = "subject_changed"  # a script, library or configuration that the artifact names
    CODE_MAPPED = "code_mapped"  # of a file that is neither a subject nor in a trusted library root
    ANONYMOUS_CODE = "anonymous_code"  # executable memory of no file
    MEMFD_EXECUTED = "memfd_executed"
    CREDENTIALS_RAISED = "credentials_raised"
    CAPABILITIES_RAISED = "capabilities_raised"
    TRACED = "traced"
    MEMORY_WRITTEN = "memory_written"  # by another process: /proc/PID/mem, process_vm_writev(2), ptrace(2)
    NAMESPACE_CHANGED = "namespace_changed"
    ROOT_CHANGED = "root_changed"
    CGROUP_LEFT = "cgroup_left"
    RESTRICTION_LOST = "restriction_lost"  # no_new_privs, seccomp or Landlock: not as was attested
    ENVIRONMENT_LOADS_CODE = "environment_loads_code"
    CHILD_UNEXPECTED = "child_unexpected"
    SOCKET_LISTENS = "socket_listens"  # where its artifact expects none to
    SOCKET_CONNECTED = "socket_connected"
    CEILING_EXCEEDED = "ceiling_exceeded"  # a resource limit that was signed is exceeded, or was lifted
    OVERDUE = "overdue"  # it runs longer than was signed
    ARTIFACT_EXPIRED = "artifact_expired"
    ARTIFACT_REVOKED = "artifact_revoked"
    ARTIFACT_SUPERSEDED = "artifact_superseded"
    POLICY_CHANGED = "policy_changed"
    KEY_REVOKED = "key_revoked"  # no trusted key signs its artifact any more

    # Of the host.
    GATE_LINK_LOST = "gate_link_lost"  # a program of the gate is detached: nothing is enforced any more
    GATE_TAMPERED = "gate_tampered"  # a program, map or pin of the gate is not the one that was loaded
    MODULE_LOADED = "module_loaded"
    KERNEL_TAINTED = "kernel_tainted"
    SYSCTL_CHANGED = "sysctl_changed"
    CLOCK_STEPPED = "clock_stepped"
    INTERFACE_CHANGED = "interface_changed"
    ADDRESS_CHANGED = "address_changed"
    ROUTE_CHANGED = "route_changed"

    # Of the monitor itself.
    UNWATCHED = "unwatched"  # for an interval nobody looked
    EVENTS_LOST = "events_lost"  # what they would have told is left to the sweeps


SeverityWord = Literal["notice", "warning", "high", "critical"]
ResponseWord = Literal["alert", "quarantine", "suspend", "terminate"]


class Severity(IntEnum):
    """How grave a finding is. Only the loss of a link of the gate is CRITICAL."""

    NOTICE = 1
    WARNING = 2
    HIGH = 3
    CRITICAL = 4

    @property
    def word(self) -> SeverityWord:
        """As in JSON, metrics and messages."""
        return _SEVERITIES[self]


class Response(IntEnum):
    """What is done about a finding; a greater one is the stronger. Of a host finding only ALERT is possible."""

    ALERT = 0  # it is recorded, counted and logged, and nothing else
    QUARANTINE = 1  # the tree executes nothing any more
    SUSPEND = 2  # every process of the tree is stopped, and stays so
    TERMINATE = 3  # every process of the tree ends

    @property
    def word(self) -> ResponseWord:
        """As in artifacts, drift.toml and the record."""
        return _RESPONSES[self]


_SEVERITIES: Final[dict[Severity, SeverityWord]] = {
    Severity.NOTICE: "notice",
    Severity.WARNING: "warning",
    Severity.HIGH: "high",
    Severity.CRITICAL: "critical",
}
_RESPONSES: Final[dict[Response, ResponseWord]] = {
    Response.ALERT: "alert",
    Response.QUARANTINE: "quarantine",
    Response.SUSPEND: "suspend",
    Response.TERMINATE: "terminate",
}

HOST_FINDINGS: Final = frozenset(
    {
        Finding.GATE_LINK_LOST,
        Finding.GATE_TAMPERED,
        Finding.MODULE_LOADED,
        Finding.KERNEL_TAINTED,
        Finding.SYSCTL_CHANGED,
        Finding.CLOCK_STEPPED,
        Finding.INTERFACE_CHANGED,
        Finding.ADDRESS_CHANGED,
        Finding.ROUTE_CHANGED,
        Finding.UNWATCHED,
        Finding.EVENTS_LOST,
    }
)
"""Those that are of no process."""

_NOTICES: Final = frozenset({Finding.PROGRAM_DELETED, Finding.ARTIFACT_SUPERSEDED, Finding.POLICY_CHANGED})
_WARNINGS: Final = frozenset(
    {
        Finding.PROGRAM_REPLACED,
        Finding.ARTIFACT_EXPIRED,
        Finding.CEILING_EXCEEDED,
        Finding.OVERDUE,
        Finding.CLOCK_STEPPED,
        Finding.INTERFACE_CHANGED,
        Finding.ADDRESS_CHANGED,
        Finding.ROUTE_CHANGED,
        Finding.UNWATCHED,
        Finding.EVENTS_LOST,
    }
)


def severity_of(finding: Finding) -> Severity:
    """How grave it is."""
    if finding is Finding.GATE_LINK_LOST:
        return Severity.CRITICAL
    if finding in _NOTICES:
        return Severity.NOTICE
    return Severity.WARNING if finding in _WARNINGS else Severity.HIGH
