"""baseline, observation → findings. Pure: no clock, no files, no kernel; the same input gives the same findings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.drift.rules import makes_code
from egs_kernel.drift.states import VDSO
from egs_kernel.findings import Finding

if TYPE_CHECKING:
    from egs_kernel.artifact.limits import ResourceConstraint
    from egs_kernel.drift.authorized import Authorized
    from egs_kernel.drift.baselines import Baseline, Baselines
    from egs_kernel.drift.rules import Rules
    from egs_kernel.drift.states import ProcessState

MEMORY: Final = ("/memfd:", "/dev/zero (deleted)", "/SYSV", "/anon_hugepage")
"""What the kernel calls memory that is shared, and of no file that anybody could find."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A finding. `detail` says the same of the same, so that nothing is told twice. `execution` and `pid` 0: of the host."""

    finding: Finding
    detail: str
    source: str
    time: int
    execution: int = 0
    pid: int = 0
    start_ticks: int = 0
    by: int = 0
    count: int = 1


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What is compared with.

    `library_roots`: egs.toml's. `cgroups`: the cgroup of each scope that has one.
    """

    baselines: Baselines
    rules: Rules
    library_roots: tuple[str, ...] = ()
    cgroups: Mapping[str, str] = {}

    def expects_code(self, program: str, said: Authorized | None) -> bool:
        """Whether executable memory of no file is expected of a program."""
        if said is not None and said.makes_code is not None:
            return said.makes_code
        return makes_code(self.rules, program)

    def trusts(self, path: str, *, trusted: bool) -> bool:
        """Whether a file of root's lies in a folder whose files may be code of any program."""
        roots = (*self.library_roots, *self.rules.expected.code)
        return trusted and any(path.startswith(f"{root}/") for root in roots)


_Told = Iterator[tuple[Finding, str]]


def compare_process(state: ProcessState, context: Context, source: str) -> list[Found]:
    """What of a process is not as it was authorized."""
    known = context.baselines.executions.get(state.execution)
    if known is None:
        return []
    said = context.baselines.artifacts.get(known.artifact_id)
    facts = context.baselines.facts_of(state.execution)
    comparisons: tuple[Iterable[tuple[Finding, str]], ...] = (
        _program(state, known, said),
        _code(state, known, said, context),
        _user_and_groups(state, known, context),
        _capabilities(state, expected_capabilities(known, said, facts)),
        _restrictions(state, known),
        _namespaces(state, facts, context.baselines),
        _place(state, known, context),
        _tracer(state, context),
        _environment(state, said),
        _sockets(state, said),
        _ceilings(state, said),
        _children(state, said),
    )
    return [
        Found(
            finding=finding,
            detail=detail,
            source=source,
            time=state.time,
            execution=state.execution,
            pid=state.pid,
            start_ticks=state.start_ticks,
            by=state.tracer if finding is Finding.TRACED else 0,
        )
        for each in comparisons
        for finding, detail in each
    ]


def _program(state: ProcessState, known: Baseline, said: Authorized | None) -> _Told:
    found = state.executable
    if found is None:
        return
    if found.path.startswith(MEMORY):
        yield Finding.MEMFD_EXECUTED, f"it executes memory: {found.path}"
    elif found.inode != known.event.file.inode:
        yield (
            Finding.PROGRAM_REPLACED,
            f"it executes {found.path}, and not the file that was executed (PR_SET_MM_EXE_FILE)",
        )
    elif found.replaced:
        yield Finding.PROGRAM_REPLACED, f"{known.event.filename} is another file now"
    elif found.deleted:
        yield Finding.PROGRAM_DELETED, f"{known.event.filename} is deleted"
    digest = _digest_of(known, said)
    if digest and found.digest and found.digest != digest:
        yield (
            Finding.PROGRAM_CHANGED,
            f"the content of {found.path} is not the authorized one: SHA-256 {found.digest}",
        )


def _digest_of(known: Baseline, said: Authorized | None) -> str:
    """Of the program; "": what runs under a child's grant, or an interpreter of a script, is one of several files."""
    if said is None or known.event.filename != said.program[0]:
        return ""
    return said.program[1]


def _code(state: ProcessState, known: Baseline, said: Authorized | None, context: Context) -> _Told:
    named = {path for path, _ in (*said.files, *said.children, said.program)} if said else set[str]()
    for mapping in state.code:
        if mapping.written:
            whose = "the kernel's" if mapping.path == VDSO else "the file's"
            yield Finding.MEMORY_WRITTEN, f"code of {mapping.path} in memory is not {whose}"
        if mapping.path == VDSO:
            continue
        if not mapping.path or mapping.path.startswith(MEMORY):
            if not context.expects_code(known.event.filename, said):
                yield Finding.ANONYMOUS_CODE, "executable memory of no file"
            continue
        path = mapping.path.removesuffix(" (deleted)")
        ours = state.executable is not None and mapping.inode == state.executable.inode
        if not (ours or path in named or context.trusts(path, trusted=mapping.trusted)):
            yield Finding.CODE_MAPPED, f"code of {mapping.path}"


def _user_and_groups(state: ProcessState, known: Baseline, context: Context) -> _Told:
    event = known.event
    if not event.euid:
        return
    if not set(state.uids) <= {event.uid, event.euid}:
        yield (
            Finding.CREDENTIALS_RAISED,
            f"user ids {_ids(state.uids)}; it was executed by {event.uid} as {event.euid}",
        )
    began = context.baselines.groups_of(state.execution)
    if began is None and 0 in state.gids and event.gid:
        yield Finding.CREDENTIALS_RAISED, f"group ids {_ids(state.gids)}; it was executed as {event.gid}"
    if began is not None and (more := groups_in(state) - began):
        yield Finding.CREDENTIALS_RAISED, f"groups {_ids(sorted(more))} beyond {_ids(sorted(began))}"


def groups_in(state: ProcessState) -> frozenset[int]:
    """Every group that a process is in."""
    return frozenset((*state.gids, *state.groups))


def _capabilities(state: ProcessState, expected: int | None) -> _Told:
    if expected is not None and (more := state.capabilities & ~expected):
        yield Finding.CAPABILITIES_RAISED, f"capabilities {more:#x} beyond {expected:#x}"


def expected_capabilities(
    known: Baseline, said: Authorized | None, facts: Mapping[str, str] | None
) -> int | None:
    """Those that were signed, or else those that it began with; None: nobody knows, or it is user 0's."""
    if said is not None and said.capabilities is not None:
        return said.capabilities
    return int(facts.get("capabilities", "0"), 16) if known.event.euid and facts is not None else None


def _ids(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))


def _restrictions(state: ProcessState, known: Baseline) -> _Told:
    event = known.event
    if event.no_new_privs and not state.no_new_privs:
        yield Finding.RESTRICTION_LOST, "no_new_privs is not set any more"
    if state.seccomp_mode < event.seccomp_mode or state.seccomp_filters < event.seccomp_filters:
        yield (
            Finding.RESTRICTION_LOST,
            f"{state.seccomp_filters} seccomp filters in mode {state.seccomp_mode}; it had {event.seccomp_filters} in mode {event.seccomp_mode}",
        )


def _namespaces(state: ProcessState, facts: Mapping[str, str] | None, baselines: Baselines) -> _Told:
    if facts is None:
        return
    given = baselines.given_at(state.pid, state.start_ticks, state.time)
    for kind, inode in state.namespaces:
        before = None if kind in given else facts.get(kind)
        if before is not None and before != str(inode):
            yield Finding.NAMESPACE_CHANGED, f"{kind}: {inode}, and it was {before}"
    root = facts.get("root")
    now = root_name(state.root)
    if root is not None and root != now:
        yield Finding.ROOT_CHANGED, f"its root folder is {now}, and it was {root}"


def root_name(root: tuple[int, int]) -> str:
    """A root folder in the words of the record."""
    return f"device {root[0]:#x} inode {root[1]}"


def _place(state: ProcessState, known: Baseline, context: Context) -> _Told:
    home = context.cgroups.get(known.event.scope)
    if home is not None and not inside(state.cgroup, home):
        yield Finding.CGROUP_LEFT, f"it is in {state.cgroup}, outside of {home}"


def inside(cgroup: str, home: str) -> bool:
    """Whether a cgroup is `home` or below it."""
    return cgroup == home or cgroup.startswith(f"{home.rstrip('/')}/")


def _tracer(state: ProcessState, context: Context) -> _Told:
    if state.tracer and state.tracer != context.baselines.daemon:  # which traces launches
        yield Finding.TRACED, f"process {state.tracer} traces it"


def _environment(state: ProcessState, said: Authorized | None) -> _Told:
    permitted = said.variables if said is not None and said.variables is not None else frozenset()
    for name in state.variables:
        if name not in permitted:
            yield Finding.ENVIRONMENT_LOADS_CODE, f"{name} in its environment"


def _sockets(state: ProcessState, said: Authorized | None) -> _Told:
    if said is None or state.sockets is None:
        return
    listen, connect = expected_ports(said)
    for opened in state.sockets:
        if opened.listens and listen is not None and opened.port not in listen:
            yield Finding.SOCKET_LISTENS, f"it listens on {opened.protocol} port {opened.port}"
        if not opened.listens and connect is not None and opened.port not in connect:
            yield Finding.SOCKET_CONNECTED, f"it is connected to {opened.protocol} port {opened.port}"


def expected_ports(said: Authorized) -> tuple[frozenset[int] | None, frozenset[int] | None]:
    """On which ports it may listen, and to which it may be connected; None: any."""
    drift, network = said.drift, said.network
    listen = drift.listen if drift is not None else None
    connect = drift.connect if drift is not None else None
    if network is not None and network.mode == "ports":
        listen = network.bind if listen is None else listen
        connect = network.connect if connect is None and network.udp != "allowed" else connect
    return _ports(listen), _ports(connect)


def _ports(listed: tuple[int, ...] | None) -> frozenset[int] | None:
    return None if listed is None else frozenset(listed)


def _ceilings(state: ProcessState, said: Authorized | None) -> _Told:
    limits = None if said is None else said.resources
    if limits is None:
        return
    if limits.open_files is not None and _exceeds(state.open_files, limits.open_files):
        yield (
            Finding.CEILING_EXCEEDED,
            f"it may open more than {limits.open_files} files: the limit was lifted",
        )
    if limits.cpu_seconds is not None and _exceeds(state.processor_seconds, limits.cpu_seconds):
        yield (
            Finding.CEILING_EXCEEDED,
            f"it may use more than {limits.cpu_seconds} s of processor time: the limit was lifted",
        )
    if limits.memory is not None and state.resident > limits.memory:
        yield Finding.CEILING_EXCEEDED, f"more than {limits.memory} bytes of memory"


def _exceeds(limit: int | None, signed: int) -> bool:
    return limit is None or limit > signed


def _children(state: ProcessState, said: Authorized | None) -> _Told:
    if state.inherited and said is not None and not said.may_fork:
        yield Finding.CHILD_UNEXPECTED, "a process that it forked"


def compare_tree(
    execution: int, states: list[ProcessState], said: Authorized | None, source: str
) -> list[Found]:
    """What the processes of one execution together are beyond."""
    limits: ResourceConstraint | None = None if said is None else said.resources
    if limits is None or not states:
        return []
    beyond = []
    if limits.processes is not None and sum(state.threads for state in states) > limits.processes:
        beyond.append(f"more than {limits.processes} processes")
    if (
        limits.memory is not None
        and len(states) > 1
        and sum(state.resident for state in states) > limits.memory
    ):
        beyond.append(f"more than {limits.memory} bytes of memory together")
    first = states[0]
    return [
        Found(
            finding=Finding.CEILING_EXCEEDED,
            detail=detail,
            source=source,
            time=first.time,
            execution=execution,
            pid=first.pid,
            start_ticks=first.start_ticks,
        )
        for detail in beyond
    ]
