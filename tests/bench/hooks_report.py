"""The cost of each hook as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from egs_kernel.gate.parts import GUARDS, HOOKS, LSM_TRACEPOINTS
from egs_kernel.model import Tier
from tests.bench import hooks
from tests.bench.hooks import Hooks, Work
from tests.bench.report import measured_on, table

MARKERS: Final = (
    "<!-- written by scripts/bench hooks: begin -->",
    "<!-- written by scripts/bench hooks: end -->",
)
_EXECS: Final = (hooks.OUTSIDE, hooks.AUTHORIZED, hooks.REFUSED)
_GUARDED: Final = {hooks.OUTSIDE: hooks.GUARDED_OUTSIDE, hooks.AUTHORIZED: hooks.GUARDED}
_CHORES: Final = (hooks.CHORES_OUTSIDE, hooks.CHORES)
_OFTEN: Final = 0.5
"""Runs for each exec or chore: what runs more rarely was somebody else's doing."""


def render_hooks(here: Hooks | None, emulated: Sequence[Hooks]) -> str:
    """Everything between `MARKERS`, of what there is."""
    parts = []
    if here is not None:
        parts += [measured_on(here), _counts(here), _exec_table(here), _other_table(here), *_absent(here)]
    machines = [*([here] if here else []), *emulated]
    if machines:
        parts.append(_instructions(machines))
    if emulated:
        parts.append(_emulated(emulated))
    return "\n\n".join(parts) or "No run has been made yet."


def _counts(here: Hooks) -> str:
    execs, chores = here.works[hooks.OUTSIDE].count, here.works[hooks.CHORES].count
    return f"Tier `{here.tier}`; {execs:,} execs of each kind, {chores:,} rounds of everything else."


# -- one machine, by time ----------------------------------------------------------------------


def _exec_table(here: Hooks) -> str:
    names = [name for name in here.programs if name not in GUARDS and _runs_in_execs(here, name)]
    rows = [_exec_row(here, f"`{name}`", [name]) for name in names]
    rows.append(_exec_row(here, "all of these", names))
    if hooks.GUARDED in here.works:
        rows += [_exec_row(here, f"`{name}`, while a scope holds", [name], _GUARDED) for name in GUARDS]
    rows.append(("fork+exec+wait, median", *(cell for kind in _EXECS for cell in (_us(here, kind), ""))))
    header = ["program", *(cell for kind in _EXECS for cell in (f"{kind}: runs x mean", "of the exec"))]
    return "### Of an exec\n\n" + table(header, rows)


def _exec_row(
    here: Hooks, title: str, names: Sequence[str], kinds: dict[str, str] | None = None
) -> tuple[str, ...]:
    """Runs x mean of one program, or the sum of several, and its share, for each kind of exec."""
    cells: list[str] = []
    for kind in _EXECS:
        work = here.works.get(kinds.get(kind, "") if kinds else kind)
        cells += _share_cells(work, names) if work else ("", "")
    return title, *cells


def _share_cells(work: Work, names: Sequence[str]) -> tuple[str, str]:
    costs = [work.costs[name] for name in names if name in work.costs]
    total = sum(cost.runs * cost.mean for cost in costs) / work.count
    if not costs or not work.median:
        return "does not run", ""
    share = f"{100 * total / work.median:.2f} %"
    if len(names) > 1:
        return f"{total:,.0f} ns", share
    return f"{costs[0].runs / work.count:.1f} x {costs[0].mean:,.0f} ns", share


def _other_table(here: Hooks) -> str:
    rows = [
        (f"`{name}`", here.programs[name].at, *(_mean(here, kind, name) for kind in _CHORES))
        for name in here.programs
        if not _runs_in_execs(here, name) and _runs_in_chores(here, name)
    ]
    return "### Of anything else\n\nMean of a run:\n\n" + table(
        ("program", "at", "outside", "in scope"), rows
    )


def _absent(here: Hooks) -> list[str]:
    """What this machine does not have, and what nothing here made run; one line for each."""
    found = []
    if here.tier == Tier.TRACEPOINT.value:
        names = ", ".join(f"`{name}`" for name in (*HOOKS, *LSM_TRACEPOINTS))
        found.append(f"Not on this tier: {names}.")
    idle = [
        name
        for name, program in here.programs.items()
        if program.at and name not in GUARDS and not _runs(here, name)
    ]
    if idle:
        found.append(f"Attached, and run by nothing here: {', '.join(f'`{name}`' for name in idle)}.")
    return found


# -- all machines ------------------------------------------------------------------------------


def _instructions(machines: Sequence[Hooks]) -> str:
    names = list(dict.fromkeys(name for machine in machines for name in machine.programs))
    places = {name: program.at for machine in machines for name, program in machine.programs.items()}
    rows = [
        (f"`{name}`", places[name] or "user space", *(_size(one, name) for one in machines)) for name in names
    ]
    header = ("program", "at", *(f"{one.machine.kernel}, {one.tier}{_hashes(one)}" for one in machines))
    return (
        "### Instructions\n\nOf the program as the kernel has it, and those that its verifier looked at on all paths together (what a load "
        "takes, not what a run takes):\n\n" + table(header, rows)
    )


def _hashes(one: Hooks) -> str:
    return " with digests" if one.digests else ""


def _size(one: Hooks, name: str) -> str:
    program = one.programs.get(name)
    return f"{program.instructions:,} / {program.verified:,}" if program else "not on this tier"


def _emulated(machines: Sequence[Hooks]) -> str:
    names = [name for name in machines[0].programs if any(_runs(one, name) for one in machines)]
    rows = [
        (f"`{name}`", *(cell for one in machines for cell in _emulated_cells(one, name))) for name in names
    ]
    kinds = ("outside", "in scope")
    header = ("program", *(f"{one.machine.kernel}, {kind}" for one in machines for kind in kinds))
    return (
        "### Emulated\n\n**Not times of any real machine**: an emulator's. What they say is how the hooks of one "
        "column compare. Mean nanoseconds of a run, in scope that of an authorized exec where execs run it:\n\n"
        + table(header, rows)
    )


def _emulated_cells(one: Hooks, name: str) -> tuple[str, str]:
    if name in GUARDS:
        kinds: tuple[str, str] = (hooks.GUARDED_OUTSIDE, hooks.GUARDED)
    elif _runs_in_execs(one, name):
        kinds = (hooks.OUTSIDE, hooks.AUTHORIZED)
    else:
        kinds = (hooks.CHORES_OUTSIDE, hooks.CHORES)
    return _mean(one, kinds[0], name, ""), _mean(one, kinds[1], name, "")


# -- words -------------------------------------------------------------------------------------


def _runs_in_execs(here: Hooks, name: str) -> bool:
    return any(_often(here, kind, name) for kind in (*_EXECS, *_GUARDED.values()))


def _runs_in_chores(here: Hooks, name: str) -> bool:
    return any(_often(here, kind, name) for kind in _CHORES)


def _runs(here: Hooks, name: str) -> bool:
    return _runs_in_execs(here, name) or _runs_in_chores(here, name)


def _often(here: Hooks, kind: str, name: str) -> bool:
    work = here.works.get(kind)
    return work is not None and name in work.costs and work.costs[name].runs >= _OFTEN * work.count


def _mean(here: Hooks, kind: str, name: str, unit: str = " ns") -> str:
    if not _often(here, kind, name):
        return "does not run"
    return f"{here.works[kind].costs[name].mean:,.0f}{unit}"


def _us(here: Hooks, kind: str) -> str:
    median = here.works[kind].median
    return "" if median is None else f"{median / 1e3:.1f} us"
