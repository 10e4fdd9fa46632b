"""The words `resources` and `process`, where they need no kernel."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import msgspec
import pytest

from egs_kernel import verify
from egs_kernel.artifact.limits import CAPABILITIES, ProcessConstraint, ResourceConstraint
from egs_kernel.artifact.statement import Constraints, Identity, Predicate, Scope
from egs_kernel.config import parse_config
from egs_kernel.constraints import resources
from egs_kernel.constraints.attest import Plan
from egs_kernel.constraints.plan import plan
from egs_kernel.constraints.steps import (
    ORDER,
    Capabilities,
    Limits,
    NoNewPrivs,
    Seccomp,
    Step,
    Umask,
    in_order,
)
from egs_kernel.daemon.trees import growing
from egs_kernel.errors import Refused
from egs_kernel.gate.trees import Note, make_tree
from egs_kernel.model import Reason
from tests.unit import issuing

SYS_RESOURCE = 1 << CAPABILITIES.index("sys_resource")


def predicate(identity: Identity | None = None, **constraints: Any) -> Predicate:
    return Predicate(
        issued_at="2026-11-23T14:00:00Z",
        not_before="2026-11-23T14:00:00Z",
        not_after="2026-11-23T15:00:00Z",
        scope=Scope(name="agents"),
        identity=identity,
        constraints=Constraints(**constraints),
    )


def steps(**constraints: Any) -> tuple[Step, ...]:
    return plan(predicate(**constraints)).steps


def test_the_capabilities_are_the_kernel_s() -> None:
    numbers = {name: index for index, name in enumerate(CAPABILITIES)}
    assert (numbers["chown"], numbers["setpcap"], numbers["sys_admin"]) == (0, 8, 21)
    assert (numbers["sys_resource"], numbers["checkpoint_restore"]) == (24, 40)
    assert resources.SYS_RESOURCE == SYS_RESOURCE


def test_what_is_limited_loses_the_capability_to_lift_it() -> None:
    first, second, third = steps(resources=ResourceConstraint(open_files=64, core_size=0))
    assert first == NoNewPrivs()
    assert isinstance(second, Capabilities)
    assert second.kept == (1 << len(CAPABILITIES)) - 1 & ~SYS_RESOURCE
    assert third == Limits(values={"nofile": 64, "core": 0})


def test_every_launch_with_a_constraint_sets_no_new_privs() -> None:
    assert steps(resources=ResourceConstraint(wall_seconds=5)) == (NoNewPrivs(),)
    assert steps(process=ProcessConstraint(umask="0077")) == (NoNewPrivs(), Umask(mask=0o77))
    assert steps(process=ProcessConstraint(capabilities="none"))[1] == Capabilities(kept=0)
    assert steps(process=ProcessConstraint(children="listed")) == ()


def test_without_children_there_is_a_filter_before_the_others() -> None:
    childless = plan(predicate(process=ProcessConstraint(children="none"))).filters
    assert len(childless) == 1
    assert steps(process=ProcessConstraint(children="none")) == (NoNewPrivs(), Seccomp(filter=childless[0]))


def test_steps_have_an_order() -> None:
    assert ORDER[0] is NoNewPrivs
    assert ORDER[-1] is Seccomp
    given = (Seccomp(filter=b"1"), Umask(mask=0), Seccomp(filter=b"2"), NoNewPrivs())
    assert in_order(given) == (NoNewPrivs(), Umask(mask=0), Seccomp(filter=b"1"), Seccomp(filter=b"2"))
    assert Plan().empty


def test_limits_are_read_as_the_kernel_prints_them() -> None:
    found = resources.parse_limits(Path("/proc/self/limits").read_text())
    for name, key in (("Max open files", resource.RLIMIT_NOFILE), ("Max cpu time", resource.RLIMIT_CPU)):
        expected = resource.getrlimit(key)
        assert found[name] == tuple(float("inf") if value < 0 else value for value in expected)
    assert set(resources._IN_PROC.values()) <= found.keys()
    assert all(hasattr(resource, f"RLIMIT_{name.upper()}") for name in resources._IN_PROC)


def test_what_a_cgroup_is_told() -> None:
    constraint = ResourceConstraint(memory=2**26, processes=8, cpu_percent=150, wall_seconds=1)
    assert resources.controls(constraint) == {
        "memory.oom.group": "1",
        "memory.swap.max": "0",
        "memory.max": "67108864",
        "pids.max": "8",
        "cpu.max": "150000 100000",
    }
    assert constraint.limits_tree
    assert not ResourceConstraint(open_files=64, cpu_seconds=1).limits_tree


def test_an_execution_cannot_be_in_two_cgroups() -> None:
    with pytest.raises(ValueError, match=r"identity\.cgroup"):
        predicate(Identity(cgroup="/agents"), resources=ResourceConstraint(wall_seconds=5))
    assert predicate(Identity(cgroup="/agents"), resources=ResourceConstraint(open_files=8))


@pytest.mark.parametrize("missing", [{}, {"cgroup.subtree_control": ""}])
def test_a_cgroup_that_cannot_be_made_is_a_refusal(tmp_path: Path, missing: dict[str, str]) -> None:
    """Here on a folder that is no cgroup: limits and cgroup.kill are not there."""
    for name, content in missing.items():
        (tmp_path / name).write_text(content)
    note = Note(launch="1", scope="agents", artifact_id="ab")
    with pytest.raises(Refused) as caught:
        make_tree(tmp_path, "/", note, {"memory.max": "4096"} if not missing else {})
    assert caught.value.reason is Reason.CONSTRAINT_UNENFORCEABLE
    assert [path.name for path in tmp_path.iterdir()] == list(missing)


def authorization(constraints: dict[str, Any]) -> verify.Authorization:
    content = issuing.signed(issuing.statement({"constraints": constraints}))
    facts = issuing.host(enforceable=frozenset({"resources", "resources.wallSeconds"}))
    artifact = verify.authenticate(content, issuing.store(), issuing.NOW)
    return verify.authorize(artifact, issuing.intent(), facts, issuing.NOW)


def test_a_scope_without_a_cgroup_cannot_limit_a_tree() -> None:
    limited = authorization({"resources": {"wallSeconds": 60}})
    scopes = 'daemon_grace = "10s"\n[[scope]]\nname = "agents"\nmode = "enforce"\n'
    with_cgroup = growing(parse_config((scopes + 'cgroup = "/agents"\n').encode(), "egs.toml"), limited, "1")
    assert with_cgroup is not None
    assert (with_cgroup.parent, with_cgroup.controls) == ("/agents", {})
    assert with_cgroup.note.until > 0
    elsewhere = parse_config((scopes + 'users = ["root"]\n').encode(), "egs.toml")
    with pytest.raises(Refused) as caught:
        growing(elsewhere, limited, "1")
    assert caught.value.reason is Reason.CONSTRAINT_UNENFORCEABLE
    assert "resources.wallSeconds" in caught.value.next_step
    assert growing(elsewhere, authorization({"resources": {"openFiles": 64}}), "1") is None


def test_a_note_is_small() -> None:
    """The kernel keeps it with the cgroup."""
    note = Note(launch="f" * 16, scope="s" * 32, artifact_id="a" * 64, until=2**63, execution=2**63)
    assert len(msgspec.json.encode(note)) < 1024
