"""The C headers and their Python mirrors: every number, size and offset, as the host's compiler has them."""

from __future__ import annotations

import ctypes
import inspect
import re
import subprocess
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

from egs_kernel import config
from egs_kernel.gate import abi, drift_abi, parts
from egs_kernel.gate.parts import GUARDS
from egs_kernel.gate.source import gate_source
from egs_kernel.model import ARGV_MAX, LAST_GATE_REASON, Attempt, GrantKind, Reason, Verdict

BPF: Final = Path(__file__).parents[2] / "bpf"
GATE: Final = gate_source(BPF)
TYPES: Final = (
    "typedef unsigned char __u8; typedef unsigned short __u16; typedef unsigned __u32; typedef int __s32; "
    "typedef unsigned long long __u64; typedef long long __s64;"
)
COUNTS: Final = {"EGS_GATE_REASONS", "EGS_FAILURES", "EGS_DRIFT_KINDS", "EGS_DRIFT_FAILURES"}
"""How many an enum has: no members of it."""


@dataclass(frozen=True)
class Mirror:
    """A header, the module that mirrors it, what its numbers begin with, and its enums: the prefix of each, and its mirror."""

    header: str
    module: ModuleType
    prefix: str
    enums: dict[str, tuple[str, type[IntEnum | IntFlag]]]

    @property
    def text(self) -> str:
        """The header."""
        return (BPF / self.header).read_text()

    @property
    def numbers(self) -> dict[str, int]:
        """What the module says of the header's numbers."""
        names = re.findall(r"^([A-Z_]+): Final = \w+$", inspect.getsource(self.module), re.MULTILINE)
        return {f"{self.prefix}{name}": getattr(self.module, name) for name in names}

    @property
    def structs(self) -> dict[str, type[ctypes.Structure]]:
        """The module's structs by the names of the header's, with which their docstrings begin."""
        mirrors = [kind for kind in vars(self.module).values() if inspect.isclass(kind)]
        return {
            str(kind.__doc__).split()[1].rstrip(".,"): kind
            for kind in mirrors
            if issubclass(kind, ctypes.Structure) and kind.__module__ == self.module.__name__
        }


GATES: Final = Mirror(
    "egs_abi.h",
    abi,
    "EGS_",
    {
        "egs_verdict": ("EGS_", Verdict),
        "egs_reason": ("EGS_", Reason),
        "egs_grant_kind": ("EGS_GRANT_", GrantKind),
        "egs_tier": ("EGS_TIER_", abi.Tier),
        "egs_mode": ("EGS_MODE_", abi.Mode),
        "egs_missing": ("EGS_MISSING_", abi.Missing),
        "egs_task_flag": ("EGS_TASK_", abi.TaskFlag),
        "egs_scope_kind": ("EGS_SCOPE_", abi.ScopeKind),
        "egs_grant_flag": ("EGS_", abi.GrantFlag),
        "egs_restrain": ("EGS_RESTRAIN_", abi.Restrain),
        "egs_event_type": ("EGS_EVENT_", abi.EventType),
        "egs_failure": ("EGS_FAIL_", abi.Failure),
        "egs_attempt": ("EGS_ATTEMPT_", Attempt),
        "egs_protection": ("EGS_PROTECT_", abi.Protection),
        "egs_object_kind": ("EGS_OBJECT_", abi.ObjectKind),
        "egs_applicant_stage": ("EGS_APPLICANT_", abi.ApplicantStage),
    },
)
DRIFTS: Final = Mirror(
    "egs_drift.h",
    drift_abi,
    "EGS_DRIFT_",
    {
        "egs_drift_kind": ("EGS_DRIFT_", drift_abi.Kind),
        "egs_drift_exec": ("EGS_DRIFT_EXEC_", drift_abi.ExecFlag),
        "egs_drift_action": ("EGS_CALL_", drift_abi.Action),
        "egs_drift_demand": ("EGS_DEMAND_", drift_abi.Demand),
        "egs_drift_failure": ("EGS_DRIFT_FAIL_", drift_abi.Failure),
        "egs_drift_object_kind": ("EGS_DRIFT_", drift_abi.ObjectKind),
    },
)
MIRRORS: Final = (GATES, DRIFTS)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Ask the compiler: name of a thing → its number."""
    questions: list[str] = []
    for mirror in MIRRORS:
        questions += mirror.numbers
        for name in mirror.structs:
            questions.append(f"sizeof(struct {name})")
            questions += [f"__builtin_offsetof(struct {name}, {field})" for field in fields(mirror, name)]
        for name in mirror.enums:
            questions += members(mirror, name)
    lines = "".join(
        f'printf("%s %lld\\n", "{ask.replace(" ", "_")}", (long long)({ask}));' for ask in questions
    )
    headers = "".join(f'#include "{mirror.header}"\n' for mirror in MIRRORS)
    source = tmp_path_factory.mktemp("abi") / "abi.c"
    source.write_text(f"{TYPES}\n#include <stdio.h>\n{headers}int main(void) {{ {lines} return 0; }}\n")
    binary = source.with_suffix("")
    subprocess.run(["gcc", "-Wall", "-Werror", "-Wpadded", f"-I{BPF}", "-o", binary, source], check=True)
    answer = subprocess.run([binary], check=True, capture_output=True, text=True).stdout
    return {name: int(number) for name, number in (line.split() for line in answer.splitlines())}


def fields(mirror: Mirror, struct: str) -> list[str]:
    return [field[0] for field in mirror.structs[struct]._fields_]


def members(mirror: Mirror, enum: str) -> dict[str, int]:
    """What the mirror says of an enum. Reasons that are the daemon's are none of the gate's."""
    prefix, kind = mirror.enums[enum]
    everything: list[IntEnum | IntFlag] = list(kind)
    return {
        f"{prefix}{member.name}": member.value
        for member in everything
        if enum != "egs_reason" or member.value <= LAST_GATE_REASON
    }


def each(what: str) -> pytest.MarkDecorator:
    """Each number, struct or enum of each header."""
    pairs = [(mirror, name) for mirror in MIRRORS for name in getattr(mirror, what)]
    return pytest.mark.parametrize(("mirror", "name"), pairs, ids=[name for _, name in pairs])


@each("numbers")
def test_numbers(compiled: dict[str, int], mirror: Mirror, name: str) -> None:
    assert compiled[name] == mirror.numbers[name]


@each("structs")
def test_structs(compiled: dict[str, int], mirror: Mirror, name: str) -> None:
    struct = mirror.structs[name]
    offsets = {field: getattr(struct, field).offset for field in fields(mirror, name)}
    assert {field: compiled[f"__builtin_offsetof(struct_{name},_{field})"] for field in offsets} == offsets
    room = abi.ARGV_SMALL if name == "egs_exec_event" else 0  # the mirror is the head: arguments follow
    assert compiled[f"sizeof(struct_{name})"] == ctypes.sizeof(struct) + room


@each("structs")
def test_the_mirror_has_every_field_of_the_struct(mirror: Mirror, name: str) -> None:
    body = re.search(rf"struct {name} {{(.*?)}};", mirror.text, re.DOTALL)
    assert body is not None
    declared = re.findall(r"(\w+)(?:\[[^\]]*\])?;", re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL))
    assert fields(mirror, name) == [
        field for field in declared if (name, field) != ("egs_exec_event", "argv")
    ]


@each("enums")
def test_enums(compiled: dict[str, int], mirror: Mirror, name: str) -> None:
    ours = members(mirror, name)
    assert {member: compiled[member] for member in ours} == ours
    body = re.search(rf"enum {name} {{(.*?)}};", mirror.text, re.DOTALL)
    assert body is not None
    assert set(re.findall(r"(EGS_\w+) = ", body[1])) - COUNTS == set(ours)


@pytest.mark.parametrize("mirror", MIRRORS, ids=lambda mirror: mirror.header)
def test_every_struct_and_enum_of_the_header_has_a_mirror(mirror: Mirror) -> None:
    assert set(re.findall(r"^struct (\w+) {", mirror.text, re.MULTILINE)) == set(mirror.structs)
    assert set(re.findall(r"^enum (\w+) {", mirror.text, re.MULTILINE)) == set(mirror.enums)


def test_the_daemon_opens_every_map_and_program_of_the_gate() -> None:
    maps = re.findall(r"^BPF_\w+\((?:\"\w+\", )?(?:[\w ]+, )*?(\w+), ", GATE, re.MULTILINE)
    declared = {
        name
        for line in re.findall(r"^BPF_\w+\(.*\);", GATE, re.MULTILINE)
        for name in (*parts.MAPS, *parts.LSM_MAPS)
        if name in line
    }
    assert declared == {*parts.MAPS, *parts.LSM_MAPS}
    assert len(maps) == len(declared)
    programs = re.findall(r"^int (\w+)\(struct bpf_raw_tracepoint_args", GATE, re.MULTILINE)
    assert set(programs) == {
        *parts.TRACEPOINTS,
        *parts.SKIP_GUARDS,
        *parts.LSM_TRACEPOINTS,
        *GUARDS,
        *parts.CALLED,
        *parts.LSM_CALLED,
    }
    hooks = re.findall(r"^int (\w+)\(u64 \*ctx\)", GATE, re.MULTILINE)
    assert set(hooks) == set(parts.HOOKS) - set(parts.SHARED)


def test_limits_that_are_said_twice_agree() -> None:
    assert (config.MAX_SCOPES, ARGV_MAX) == (abi.MAX_SCOPES, abi.ARGV_MAX)
