"""The report on single hooks; the times themselves are asserted nowhere."""

from __future__ import annotations

import msgspec
import pytest

from egs_kernel.gate.parts import GUARDS, HOOKS, TRACEPOINTS
from tests.bench import hooks
from tests.bench.hooks import Cost, Hooks, Program, Work, cost_of
from tests.bench.hooks_command import DOCUMENT
from tests.bench.hooks_report import MARKERS, render_hooks
from tests.bench.machine import Machine
from tests.bench.report import replaced

MACHINE = Machine("a processor", 2, False, 4.0, "6.12.1", "a system", "3.11", "ext4")
EXEC = {"gate_exec": Cost(100, 2_000), "gate_fork": Cost(101, 500), "gate_rmdir": Cost(3, 300)}
CHORES = {"gate_rmdir": Cost(10, 200), "gate_fork": Cost(1, 500)}


def found(tier: str, **works: Work) -> Hooks:
    places = TRACEPOINTS | GUARDS | (HOOKS if tier == "lsm" else {})
    return Hooks(
        date="2026-11-23",
        version="0.1.0",
        machine=MACHINE,
        emulated=tier == "lsm",
        disturbances=("other work ran (load 9.0 at the start)",),
        tier=tier,
        digests=False,
        programs={name: Program(at, 1200, 3400) for name, at in places.items()}
        | {"set_task": Program("", 56, 7)},
        works={
            hooks.OUTSIDE: Work(100, 500_000.0, EXEC),
            hooks.AUTHORIZED: Work(100, 400_000.0, EXEC),
            hooks.REFUSED: Work(100, 200_000.0, {}),
            hooks.CHORES_OUTSIDE: Work(10, None, CHORES),
            hooks.CHORES: Work(10, None, CHORES),
            **works,
        },
    )


def row(text: str, begin: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {begin} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_round_that_was_interrupted_does_not_make_a_program_expensive() -> None:
    assert cost_of([(10, 1_000), (20, 2_400), (10, 9_000_000)]) == Cost(40, 120)


def test_a_share_is_of_the_exec_that_was_timed() -> None:
    text = render_hooks(found("tracepoint"), [])

    assert row(text, "`gate_exec`")[1:5] == ["1.0 x 2,000 ns", "0.40 %", "1.0 x 2,000 ns", "0.50 %"]
    assert row(text, "`gate_exec`")[5:] == ["does not run", ""]
    assert row(text, "all of these")[1:3] == ["2,505 ns", "0.50 %"]
    assert row(text, "fork+exec+wait, median")[1] == "500.0 us"


def test_what_others_made_run_now_and_then_is_no_cost_of_an_exec() -> None:
    text = render_hooks(found("tracepoint"), [])

    assert row(text, "`gate_rmdir`") == ["`gate_rmdir`", "cgroup_rmdir", "200 ns", "200 ns"]


def test_a_run_says_what_disturbed_it_and_what_it_cannot_know() -> None:
    text = render_hooks(found("tracepoint"), [])

    assert "**Disturbed**: other work ran (load 9.0 at the start)." in text
    absent = next(line for line in text.splitlines() if line.startswith("Not on this tier"))
    assert all(f"`{name}`" in absent for name in HOOKS)
    idle = next(line for line in text.splitlines() if line.startswith("Attached, and run by nothing"))
    assert "`gate_mkdir`" in idle
    assert "`guard_fault`" not in text.partition("### Instructions")[0]


def test_the_guards_have_their_own_rows_when_they_were_attached() -> None:
    guarded = Work(100, 500_000.0, {"guard_fault": Cost(4_000, 50)})

    text = render_hooks(found("tracepoint", **{hooks.GUARDED_OUTSIDE: guarded, hooks.GUARDED: guarded}), [])

    assert row(text, "`guard_fault`, while a scope holds")[1:] == ["40.0 x 50 ns", "0.40 %"] * 2 + ["", ""]


def test_emulated_times_are_called_so_and_stand_in_no_table_with_others() -> None:
    text = render_hooks(found("tracepoint"), [found("lsm")])

    times, _, emulated = text.partition("### Emulated")
    assert "Not times of any real machine" in emulated
    assert row(emulated, "`gate_exec`") == ["`gate_exec`", "2,000", "2,000"]
    instructions = times.partition("### Instructions")[2]
    assert row(instructions, "`check_exec`") == [
        "`check_exec`",
        "bprm_check_security",
        "not on this tier",
        "1,200 / 3,400",
    ]
    assert row(instructions, "`set_task`")[1] == "user space"


@pytest.mark.parametrize("here", [None, found("tracepoint")], ids=("no host", "a host"))
def test_the_document_has_room_for_whatever_was_measured(here: Hooks | None) -> None:
    text = render_hooks(here, [])

    filled = replaced(DOCUMENT.read_text(), text, MARKERS)

    assert f"{MARKERS[0]}\n{text}\n{MARKERS[1]}" in filled
    with pytest.raises(ValueError, match="markers"):
        replaced(filled + MARKERS[1], "twice", MARKERS)


def test_results_come_back_from_a_machine_as_they_were() -> None:
    result = found("lsm")

    assert (
        msgspec.convert(msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(result))), Hooks)
        == result
    )
