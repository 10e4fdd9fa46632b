"""Nothing of an unauthorized image runs, however it is started; and the test would notice if it did."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from egs_kernel.gate.parts import can_skip
from egs_kernel.model import ExecEvent, GateEvent, Reason
from tests.harness import PATIENCE
from tests.refusals import KILLED, REFUSED

if TYPE_CHECKING:
    from egs_kernel.gate.pins import Gate
    from tests.harness import Instance

pytestmark = pytest.mark.kernel

TRIES: Final = 2000
SECONDS: Final = 100 * PATIENCE
METHODS: Final = ("fork", "vfork", "posix_spawn", "memfd", "thread", "leader")


def burst(
    programs: dict[str, Path], instance: Instance, method: str, parents: int, tries: int, output: Path
) -> str:
    output.write_bytes(b"")
    done = subprocess.run(
        [
            str(programs["burst"]),
            str(instance.cgroup.procs),
            method,
            str(parents),
            str(tries),
            str(programs["first_write"]),
            str(output),
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    return done.stdout.strip()


def ended(*, refused: int = 0, executed: int = 0) -> str:
    """What burst prints when so many execs were refused, and so many programs ran to their end."""
    killed = refused if REFUSED == KILLED else 0
    return f"killed {killed} denied {refused - killed} exited {executed} other 0"


@pytest.mark.parametrize("parents", [1, 8])
@pytest.mark.parametrize("method", METHODS)
def test_2000_unauthorized_execs_write_nothing(
    gate: Gate, instance: Instance, programs: dict[str, Path], tmp_path: Path, method: str, parents: int
) -> None:
    seen: list[GateEvent] = []
    output = tmp_path / "output"

    ends = burst(programs, instance, method, parents, TRIES, output)

    gate.drain(seen.append)
    assert ends == ended(refused=TRIES)
    assert output.read_bytes() == b""
    counters = gate.counters()
    assert counters.decisions == {(REFUSED.verdict, Reason.NO_GRANT, True): TRIES}
    assert can_skip() or (counters.failures["exec_skipped"], counters.missed) == (0, 0)
    executed = [event for event in seen if isinstance(event, ExecEvent)]
    assert len(executed) + counters.failures["event"] == TRIES
    assert {event.kill_error for event in executed} == {0}


@pytest.mark.parametrize("method", METHODS)
def test_without_the_gate_the_same_program_writes(
    instance: Instance, programs: dict[str, Path], tmp_path: Path, method: str
) -> None:
    output = tmp_path / "output"

    ends = burst(programs, instance, method, 1, 20, output)

    assert ends == ended(executed=20)
    assert output.read_bytes() == b"x" * 20


def test_an_unloaded_gate_refuses_no_more(
    instance: Instance, programs: dict[str, Path], tmp_path: Path
) -> None:
    instance.load_gate().close()
    refused = burst(programs, instance, "fork", 1, 5, tmp_path / "output")
    instance.egs("gate", "unload")

    ends = burst(programs, instance, "fork", 1, 5, tmp_path / "output")

    assert (refused, ends) == (ended(refused=5), ended(executed=5))
