"""Each word of `resources` and `process`, and the rules for folder and environment: a real program, with and without."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import rfc8785

from egs_kernel.artifact.envelope import parse_envelope, sign
from egs_kernel.audit.entries import Refusal
from egs_kernel.gate.cgroups import cgroup_mount
from egs_kernel.gate.trees import PREFIX, controllers_of
from egs_kernel.model import GrantKind, Reason, Verdict
from egs_kernel.trust.keys import load_private
from egs_kernel.verify import artifact_id
from tests import refusals
from tests.constraining import Acts, compile_acts
from tests.harness import BIN, PATIENCE
from tests.refusals import REFUSED
from tests.running import SECONDS, Running, running_on_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]

EPERM, EMFILE, ENOMEM = 1, 24, 12
MIB = 2**20
WAIT_STATUS = -REFUSED.code if REFUSED.code < 0 else REFUSED.code << 8
"""wait(2)'s, of a child whose exec was refused."""


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """One system for all of them."""
    with running_on_disk() as system:
        yield system


@pytest.fixture(scope="module")
def acts(running: Running) -> Acts:
    return Acts(running, compile_acts(running.folder))


def shown(output: str) -> dict[str, str]:
    return dict(line.replace(":", "").split() for line in output.splitlines())


def test_open_files(acts: Acts) -> None:
    assert acts.output("", "files", "40") == "done\n"
    assert acts.output("[resources]\nopenFiles = 32\n", "files", "40") == f"errno {EMFILE}\n"
    # It may have been root's: the limit stays, because CAP_SYS_RESOURCE went with it.
    assert acts.output("[resources]\nopenFiles = 32\n", "raises") == f"errno {EPERM}\n"


def test_address_space(acts: Acts) -> None:
    assert acts.output("", "memory", "200") == "done\n"
    assert acts.output(f"[resources]\naddressSpace = {64 * MIB}\n", "memory", "200") == f"errno {ENOMEM}\n"


def test_file_size(acts: Acts, tmp_path: Path) -> None:
    target = str(tmp_path / "big")
    assert acts.output("", "writes", str(MIB), target) == "done\n"
    stopped = acts.run("[resources]\nfileSize = 65536\n", "writes", str(MIB), target)
    assert stopped.returncode == -signal.SIGXFSZ
    assert (tmp_path / "big").stat().st_size == 65536


def test_cpu_seconds(acts: Acts) -> None:
    stopped = acts.run("[resources]\ncpuSeconds = 1\ncoreSize = 0\n", "burns")
    assert stopped.returncode == -signal.SIGKILL


def test_core_size(acts: Acts, tmp_path: Path) -> None:
    """Its memory image, where the host puts that into a file: core_pattern may hand it to a program instead."""
    if set("/|") & set(Path("/proc/sys/kernel/core_pattern").read_text()):
        pytest.skip("this host does not put memory images into a program's folder")
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    options = {"cwd": tmp_path, "preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_CORE, unlimited)}
    for constraints, images in (("[resources]\ncoreSize = 0\n", 0), ("", 1)):
        assert acts.run(constraints, "aborts", **options).returncode == -signal.SIGABRT
        assert len(list(tmp_path.glob("core*"))) == images


@pytest.mark.parametrize(
    ("constraints", "field"),
    [
        ({"resources": {"openFiles": -1}}, "resources.openFiles"),
        ({"resources": {"memory": 2**52}}, "resources.memory"),
        ({"resources": {}}, "resources"),
        ({"process": {"capabilities": ["fly"]}}, "capabilities[0]"),
        ({"process": {"umask": "0999"}}, "process.umask"),
        (
            {"process": {"capabilities": ["sys_resource"]}, "resources": {"openFiles": 64}},
            "process.capabilities",
        ),
        ({"filesystem": {"read": ["/srv/../etc"]}}, "filesystem.read[0]"),
        ({"filesystem": {"base": "all"}}, "filesystem.base"),
        ({"network": {"mode": "none", "connect": [443]}}, "network"),
        ({"network": {"mode": "ports", "connect": [0]}}, "network.connect[0]"),
        ({"sandbox": {"mode": "strict"}}, "constraints"),
    ],
)
def test_what_egs_issue_would_not_sign_the_daemon_refuses_again(
    running: Running, acts: Acts, constraints: dict[str, Any], field: str
) -> None:
    """Signed by a trusted key all the same, by a tool that checks nothing."""
    statement = json.loads(parse_envelope(acts.issue("").read_bytes()).payload)
    statement["predicate"]["constraints"] = constraints
    signed = sign(rfc8785.dumps(statement), [load_private(running.folder / "issuer.key")])
    acts.artifact.write_bytes(signed)
    done = running.run("--artifact", str(acts.artifact), str(acts.program))
    assert (done.returncode, done.stdout) == (126, "")
    assert field in done.stderr
    assert "[artifact_" in done.stderr, done.stderr


def test_capabilities_and_umask(acts: Acts) -> None:
    free = shown(acts.output(""))
    assert (free["no_new_privs"], int(free["CapPrm"], 16) != 0) == ("0", True)
    bound = shown(acts.output('[process]\ncapabilities = ["chown"]\numask = "0077"\n'))
    assert (bound["umask"], bound["no_new_privs"]) == ("0077", "1")
    assert {int(bound[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {1}
    none = shown(acts.output('[process]\ncapabilities = "none"\n'))
    assert int(none["CapPrm"], 16) == 0
    assert shown(acts.output('[process]\nnewPrivileges = "refused"\n'))["no_new_privs"] == "1"


def test_a_mount_takes_a_capability(acts: Acts) -> None:
    assert acts.output("", "mounts") == "done\n"
    assert acts.output('[process]\ncapabilities = ["chown"]\n', "mounts") == f"errno {EPERM}\n"


def wall(seconds: int) -> str:
    """A constraint that ends an execution after so many seconds, of a machine that is not emulated."""
    return f"[resources]\nwallSeconds = {int(seconds * PATIENCE)}\n"


@contextmanager
def started(
    running: Running, acts: Acts, constraints: str
) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A tree of four processes, each in a session of its own, and their numbers."""
    artifact = acts.issue(constraints)
    with subprocess.Popen(
        [str(BIN / "egs"), "run", "--artifact", str(artifact), str(acts.program), "tree", "2"],
        env=running.instance.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        running.instance.reap_also(process.pid)
        assert process.stdout is not None
        pids = [int(process.stdout.readline().split()[1]) for _ in range(4)]
        for pid in pids:
            running.instance.reap_also(pid)
        yield process, pids
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def await_end(pids: list[int]) -> None:
    """Return when none of them is there any more."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        assert select.select([descriptor], [], [], SECONDS)[0], f"{pid} goes on"
        os.close(descriptor)


def trees_of(running: Running) -> list[Path]:
    return list(running.instance.cgroup.folder.glob(f"{PREFIX}*"))


def await_no_tree(running: Running) -> None:
    """Return when no execution has a cgroup of its own any more."""
    deadline = time.monotonic() + SECONDS
    while trees_of(running):
        assert time.monotonic() < deadline, running.log()
        os.sched_yield()


def refused(running: Running, what: str, artifact: Path) -> Refusal:
    """What the record says of an execution under this artifact that came up against a limit."""
    envelope = parse_envelope(artifact.read_bytes())
    wanted = "resources", what, artifact_id(envelope)
    return running.wait_for(Refusal, lambda entry: (entry.word, entry.what, entry.artifact_id) == wanted)


def test_a_tree_ends_with_its_time(running: Running, acts: Acts) -> None:
    with started(running, acts, wall(2)) as (process, pids):
        (tree,) = trees_of(running)
        assert set(map(int, (tree / "cgroup.procs").read_text().split())) == set(pids)
        refusal = refused(running, "wallSeconds", acts.artifact)
        await_end(pids)
        assert process.wait(SECONDS) == -signal.SIGKILL
    executed = [entry.event.execution for entry in running.wait_for_exec(acts.program, Verdict.ALLOW)]
    assert refusal.execution == executed[-1]
    await_no_tree(running)
    with started(running, acts, "") as (_, others):
        assert not trees_of(running)
        assert all(Path(f"/proc/{pid}").exists() for pid in others)


def test_the_time_goes_on_while_no_daemon_runs(running: Running, acts: Acts) -> None:
    with started(running, acts, wall(3)) as (_, pids):
        running.stop(signal.SIGKILL)
        running.start()
        refused(running, "wallSeconds", acts.artifact)
        await_end(pids)
        await_no_tree(running)


def test_what_ends_in_time_leaves_nothing(running: Running, acts: Acts) -> None:
    before = len(running.entries(Refusal))
    assert acts.output(wall(60), "files", "1") == "done\n"
    await_no_tree(running)
    assert len(running.entries(Refusal)) == before


def test_an_execution_in_another_cgroup_than_its_own_is_refused(running: Running, acts: Acts) -> None:
    """Root's launcher moves itself before its exec."""
    away = running.instance.cgroup.child("away")
    artifact = acts.issue(wall(60))
    done = acts.lie(
        artifact,
        "execute = launch._execute\n"
        f"def leave(*given):\n    open({str(away.procs)!r}, 'w').write('0')\n    execute(*given)\n"
        "launch._execute = leave\n",
    )
    assert done.returncode == REFUSED.code
    running.wait_for_refusal(acts.program, Reason.CGROUP_MISMATCH)
    await_no_tree(running)


def has(controller: str) -> bool:
    return controller in controllers_of(cgroup_mount())


@pytest.mark.parametrize(
    ("controller", "limit"),
    [("memory", "memory = 67108864"), ("pids", "processes = 8"), ("cpu", "cpuPercent = 20")],
)
def test_a_limit_whose_controller_is_missing_denies_the_launch(
    acts: Acts, controller: str, limit: str
) -> None:
    if has(controller):
        pytest.skip(f"this host has the cgroup v2 controller {controller}")
    done = acts.run(f"[resources]\n{limit}\n")
    assert (done.returncode, "[constraint_unenforceable]" in done.stderr) == (126, True)
    assert f"controller {controller}" in done.stderr


@pytest.mark.skipif(
    not has("memory"), reason="needs the cgroup v2 controller memory: tests/vm has hosts with it"
)
def test_memory_of_the_tree(running: Running, acts: Acts) -> None:
    assert acts.output("", "memory", "100") == "done\n"
    assert acts.run("[resources]\nmemory = 33554432\n", "memory", "100").returncode == -signal.SIGKILL
    refused(running, "memory", acts.artifact)


@pytest.mark.skipif(not has("pids"), reason="needs the cgroup v2 controller pids: tests/vm has hosts with it")
def test_a_fork_bomb(running: Running, acts: Acts) -> None:
    options = {"start_new_session": True}
    assert "made 50 errno 0" in acts.run("", "forks", "50", **options).stdout
    assert "made 7 errno 11" in acts.run("[resources]\nprocesses = 8\n", "forks", "50", **options).stdout
    refused(running, "processes", acts.artifact)


@pytest.mark.skipif(not has("cpu"), reason="needs the cgroup v2 controller cpu: tests/vm has hosts with it")
def test_cpu_of_the_tree(running: Running, acts: Acts) -> None:
    with started(running, acts, "[resources]\ncpuPercent = 50\n") as (_, pids):
        (tree,) = trees_of(running)
        assert (tree / "cpu.max").read_text() == "50000 100000\n"
        (tree / "cgroup.kill").write_text("1")
        await_end(pids)
    await_no_tree(running)


def test_no_children(acts: Acts) -> None:
    options = {"start_new_session": True}
    assert "made 50 errno 0" in acts.run("", "forks", "50", **options).stdout
    alone = '[process]\nchildren = "none"\n'
    assert f"made 0 errno {EPERM}" in acts.run(alone, "forks", "50", **options).stdout
    assert acts.output(alone, "threads") == "done\n"


LISTED = '[process]\nchildren = "listed"\n'


def test_nothing_more_is_executed(running: Running, acts: Acts) -> None:
    """Without children a program executes nothing, not even what stands."""
    other = running.copy("/bin/true", "standing")
    running.add(running.issue(other, name="standing.json"))
    assert acts.run("", "executes", str(other)).returncode == 0
    done = acts.run('[process]\nchildren = "none"\n', "executes", str(other))
    assert done.returncode == REFUSED.code
    running.wait_for_refusal(other, Reason.CHILD_REFUSED)


def test_listed_children(running: Running, acts: Acts) -> None:
    """They run for this artifact, and for no other; and nothing else runs."""
    child, standing = running.copy("/bin/true", "child"), running.copy("/bin/sleep", "other")
    running.add(running.issue(standing, name="other.json"))
    artifact = acts.issue(LISTED, "--child", str(child))
    run = ("--artifact", str(artifact), str(acts.program), "starts")
    assert running.run(*run, str(child), "x").stdout == "status 0\n"
    (executed,) = running.wait_for_exec(child, Verdict.ALLOW)
    assert (executed.event.grant_kind, executed.use_until) == (GrantKind.CHILD, None)
    assert executed.event.artifact_id == artifact_id(parse_envelope(artifact.read_bytes()))
    bundle = str(running.folder / "child.proof")
    running.instance.egs("proof", "export", str(executed.event.execution), "--out", bundle)
    running.instance.egs("proof", "verify", bundle, "--trust", str(running.instance.paths.trust))
    for refused, reason in ((standing, Reason.CHILD_REFUSED), (acts.program, Reason.CHILD_REFUSED)):
        assert running.run(*run, str(refused), "1").stdout == f"status {WAIT_STATUS}\n"
        running.wait_for_refusal(refused, reason)
    assert (
        running.run("--artifact", str(acts.issue("")), str(acts.program), "starts", str(child)).stdout
        != "status 0\n"
    )
    running.wait_for_refusal(child, Reason.NO_GRANT)
    # In a cgroup below: where limits need controllers, the scope's own takes no processes.
    plain = running.instance.cgroup.child("plain")
    assert refusals.run([child], plain.enter, timeout=SECONDS).returncode == REFUSED.code


def test_a_listed_child_starts_listed_ones(running: Running, acts: Acts) -> None:
    child, twin = running.copy("/bin/true", "leaf"), running.copy(str(acts.program), "twin")
    artifact = acts.issue(LISTED, "--child", str(child), "--child", str(twin))
    chain = ("starts", str(twin), "executes", str(twin), "executes", str(child))
    assert running.run("--artifact", str(artifact), str(acts.program), *chain).stdout == "status 0\n"
    beyond = ("starts", str(twin), "executes", "/bin/true")
    assert running.run("--artifact", str(artifact), str(acts.program), *beyond).stdout != "status 0\n"


def test_children_end_with_their_artifact(running: Running, acts: Acts) -> None:
    """Revoked, what runs already ends: it starts nothing more."""
    child = running.copy("/bin/true", "late")
    artifact = acts.issue(LISTED, "--child", str(child))
    with subprocess.Popen(
        [str(BIN / "egs"), "run", "--artifact", str(artifact), str(acts.program), "asks", str(child)],
        env=running.instance.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        running.instance.reap_also(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "status 0\n"
        running.instance.egs("revoke", artifact_id(parse_envelope(artifact.read_bytes())))
        assert process.wait(SECONDS) == -signal.SIGKILL


def test_a_child_that_is_another_file_by_now(running: Running, acts: Acts) -> None:
    child = running.copy("/bin/true", "old")
    artifact = acts.issue(LISTED, "--child", str(child))
    child.write_bytes(Path("/bin/false").read_bytes())
    done = running.run("--artifact", str(artifact), str(acts.program))
    assert (done.returncode, "[digest_mismatch]" in done.stderr) == (126, True), done.stderr
