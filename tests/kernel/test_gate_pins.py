"""Loading, other versions' pins, a gate that is not whole, a full table, a lost daemon: each a clear refusal."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from egs_kernel.errors import GateError
from egs_kernel.gate import abi, libbpf
from egs_kernel.gate.pins import Gate
from egs_kernel.model import ExecEvent, GateEvent, Reason
from tests.harness import BIN, COMMAND_SECONDS
from tests.refusals import KILLED, REFUSED, TIER, run

if TYPE_CHECKING:
    from tests.harness import Instance

pytestmark = pytest.mark.kernel


def end_inside(instance: Instance) -> int:
    return int(run(["/bin/true"], instance.cgroup.enter, timeout=COMMAND_SECONDS).returncode)


def test_no_gate_is_loaded(instance: Instance) -> None:
    done = instance.egs("gate", "status", check=False)
    assert done.returncode == 3
    assert "gate_not_loaded" in done.stderr
    assert "egs gate load" in done.stderr


def test_loading_twice_brings_the_scopes_up_to_date(instance: Instance) -> None:
    instance.load_gate().close()
    assert end_inside(instance) == REFUSED.code
    instance.configure(mode="observe")
    done = json.loads(instance.egs("gate", "load", "--json").stdout)
    assert done["already"] is True
    assert end_inside(instance) == 0


def test_pins_of_another_version(instance: Instance) -> None:
    gate = instance.load_gate()
    gate.configs.put(ctypes.c_uint32(0), abi.Config(abi_version=abi.ABI_VERSION + 1))
    gate.close()
    for command in ("load", "status"):
        done = instance.egs("gate", command, check=False)
        assert done.returncode == 3
        assert "gate_version_mismatch" in done.stderr
        assert "egs gate unload && egs gate load" in done.stderr
    instance.egs("gate", "unload")
    instance.load_gate().close()


def test_a_pin_that_another_version_does_not_have(instance: Instance) -> None:
    instance.load_gate().close()
    (instance.paths.pins / "tasks").unlink()
    with pytest.raises(GateError) as caught:
        Gate.open(instance.paths.pins)
    assert caught.value.reason is Reason.GATE_VERSION_MISMATCH


def test_a_detached_hook(instance: Instance) -> None:
    instance.load_gate().close()
    (instance.paths.pins / "link_gate_fork").unlink()
    with pytest.raises(GateError, match="gate_fork detached") as caught:
        Gate.open(instance.paths.pins)
    assert caught.value.reason is Reason.GATE_FAILED


def test_a_configuration_that_is_wrong_loads_nothing(instance: Instance) -> None:
    instance.configure(more='[[scope]]\nname = "x"\nbinaries = ["/does/not/exist"]\n')
    done = instance.egs("gate", "load", check=False)
    assert done.returncode == 2
    assert "/does/not/exist" in done.stderr
    assert not instance.paths.pins.exists()


def test_a_loader_that_is_killed_leaves_no_hook(instance: Instance, tmp_path: Path) -> None:
    """Killed in the middle of its self-test: the next load starts clean, and nothing was enforced meanwhile."""
    helper = tmp_path / "killed.py"
    helper.write_text(
        "import os, signal\n"
        "from egs_kernel.cli.main import run\n"
        "from egs_kernel.gate import loader\n"
        "loader.run_self_test = lambda gate: os.kill(os.getpid(), signal.SIGKILL)\n"
        "run(['gate', 'load'])\n"
    )
    done = subprocess.run(
        [BIN / "python", helper], env=instance.environment, check=False, timeout=COMMAND_SECONDS
    )
    assert done.returncode == KILLED.code
    assert end_inside(instance) == 0
    instance.load_gate().close()
    assert end_inside(instance) == REFUSED.code


def test_unloading_what_is_not_loaded(instance: Instance) -> None:
    assert json.loads(instance.egs("gate", "unload", "--json").stdout) == {"unloaded": False}


def test_only_root_loads(instance: Instance) -> None:
    instance.root.parent.chmod(0o755)
    done = subprocess.run(
        [BIN / "python", "-c", _LOAD_AS_NOBODY],
        env=instance.environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )
    assert done.stdout.strip() == "not_permitted"


_LOAD_AS_NOBODY: Final = """
from egs_kernel.config import Config
from egs_kernel.errors import GateError
from egs_kernel.gate import loader
from egs_kernel.paths import Paths
import os
os.setresuid(65534, 65534, 65534)
try:
    loader.load_gate(Paths.from_environment(), Config())
except GateError as error:
    print(error.reason.code)
"""


def test_too_many_governed_processes(instance: Instance) -> None:
    """Beyond the soft limit who forks dies, and the child is still tracked: a full table never forgets."""
    gate = instance.load_gate()
    gate.beat()
    counts = libbpf.Map(
        libbpf.open_pin(instance.paths.pins / "task_counts"), ctypes.c_uint32, ctypes.c_uint64
    )
    counts.put(ctypes.c_uint32(0), ctypes.c_uint64(abi.TASKS_SOFT))
    read, write = os.pipe()

    def fork_inside() -> None:
        instance.cgroup.enter()
        if os.fork() == 0:
            os.write(write, b"child")

    done = run(["/bin/true"], fork_inside, timeout=COMMAND_SECONDS, pass_fds=(write,))
    os.close(write)
    assert done.returncode == KILLED.code
    assert os.read(read, 10) == b"child"
    os.close(read)
    assert gate.counters().failures["fork_refused"] == 1
    events: list[GateEvent] = []
    while gate.governed():
        gate.drain(events.append)
    gate.drain(events.append)
    assert [event.reason for event in events if isinstance(event, ExecEvent)] == [Reason.NO_GRANT]
    os.close(counts.descriptor)
    gate.close()


def test_doctor(instance: Instance) -> None:
    done = json.loads(instance.egs("doctor", "--json").stdout)
    assert done["tier"] == TIER.value
    present = {found["name"] for found in done["findings"] if found["present"]}
    assert {"root", "bcc", "kernel types (BTF)", "ring buffer", "raw tracepoint programs"} <= present
    assert all(found["cure"] for found in done["findings"] if not found["present"])
