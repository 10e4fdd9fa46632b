"""What each finding means, for people: `egs drift explain`, and the table of docs/drift.md. Pure."""

from __future__ import annotations

from typing import Final

from egs_kernel.findings import Finding

MEANINGS: Final = {
    Finding.PROGRAM_CHANGED: "the content of the executed file is not what was authorized",
    Finding.PROGRAM_REPLACED: "the program's path leads to another file than the authorized one",
    Finding.PROGRAM_DELETED: "no name leads to the executed file any more",
    Finding.SUBJECT_CHANGED: "a script, library or child that the artifact names has another content",
    Finding.CODE_MAPPED: "it runs code of a file that is neither a subject nor in a trusted library root",
    Finding.ANONYMOUS_CODE: "it has executable memory of no file, and nothing says that it may",
    Finding.MEMFD_EXECUTED: "it executes a file that is memory",
    Finding.CREDENTIALS_RAISED: "its user or group ids are not those that it was executed with",
    Finding.CAPABILITIES_RAISED: "it has capabilities that it did not begin with, or that were not signed",
    Finding.TRACED: "another process traces it, and is not egsd",
    Finding.MEMORY_WRITTEN: "another process wrote its memory, or code in memory is not the file's",
    Finding.NAMESPACE_CHANGED: "it is in another namespace than when it began",
    Finding.ROOT_CHANGED: "its root folder is another one than when it began",
    Finding.CGROUP_LEFT: "it is outside of its scope's cgroup; it stays governed",
    Finding.RESTRICTION_LOST: "no_new_privs or its seccomp filters are less than was attested",
    Finding.ENVIRONMENT_LOADS_CODE: "its environment has a variable that makes programs load code",
    Finding.CHILD_UNEXPECTED: "it has a process of its own, which its artifact refuses",
    Finding.SOCKET_LISTENS: "it listens on a port that its artifact does not name",
    Finding.SOCKET_CONNECTED: "it is connected to a port that its artifact does not name",
    Finding.CEILING_EXCEEDED: "it is beyond a limit that was signed, or the limit was lifted",
    Finding.OVERDUE: "it runs longer than was signed",
    Finding.ARTIFACT_EXPIRED: "its artifact is not valid any more",
    Finding.ARTIFACT_REVOKED: "its artifact was revoked",
    Finding.ARTIFACT_SUPERSEDED: "its artifact was removed, or another one continues it",
    Finding.POLICY_CHANGED: "another policy set is active than the one that it was decided under",
    Finding.KEY_REVOKED: "no key that signed its artifact is trusted any more",
    Finding.GATE_LINK_LOST: "a program of the gate is detached: nothing is enforced",
    Finding.GATE_TAMPERED: "a program, map or pin of the gate is not the one that was loaded",
    Finding.MODULE_LOADED: "a kernel module came or went",
    Finding.KERNEL_TAINTED: "the kernel says that it is tainted in another way than before",
    Finding.SYSCTL_CHANGED: "a watched setting of the kernel was changed",
    Finding.CLOCK_STEPPED: "the host's clock was set",
    Finding.INTERFACE_CHANGED: "a network interface came, went or changed",
    Finding.ADDRESS_CHANGED: "a network address came or went",
    Finding.ROUTE_CHANGED: "a route came or went",
    Finding.UNWATCHED: "for an interval no monitor was there",
    Finding.EVENTS_LOST: "a source could not tell everything that it saw",
}
