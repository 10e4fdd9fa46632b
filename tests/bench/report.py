"""The results as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from tests.bench import results as goals
from tests.bench.execs import Execs
from tests.bench.fapolicyd import Peer
from tests.bench.hooks import Hooks
from tests.bench.results import Results
from tests.bench.stats import Ratio, Summary

BEGIN: Final = "<!-- written by scripts/bench: begin -->"
END: Final = "<!-- written by scripts/bench: end -->"


def replaced(document: str, report: str, markers: tuple[str, str] = (BEGIN, END)) -> str:
    """`document` with `report` between the markers.

    Raises:
        ValueError: it does not have each marker once.
    """
    begin, end = markers
    if document.count(begin) != 1 or document.count(end) != 1:
        raise ValueError("docs/benchmarks.md needs its two markers, once each")
    head, rest = document.split(begin)
    tail = rest.split(end)[1]
    return f"{head}{begin}\n{report}\n{end}{tail}"


def render(results: Results) -> str:
    """Everything between the markers."""
    return "\n\n".join(
        (
            measured_on(results),
            _goals(results),
            _execs(results),
            _programs(results),
            _fapolicyd(results),
            _launches(results),
            _daemon(results),
            _loading(results),
            _verifying(results),
        )
    )


def measured_on(results: Results | Hooks) -> str:
    """When, what and where; and what went on beside."""
    machine = results.machine
    kind = "virtual machine" if machine.virtual else "machine"
    text = (
        f"Measured on {results.date} with egs-kernel {results.version}, in one run, on a {kind}: "
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib:g} GiB; Linux {machine.kernel}, {machine.system}, "
        f"Python {machine.python}; the record on {machine.record_on}."
    )
    if results.disturbances:
        text += "\n\n**Disturbed**: " + "; ".join(results.disturbances) + "."
    return text


def _goals(results: Results) -> str:
    fork = results.execs[0]
    run = next(launch for launch in results.launches if launch.title == "egs run")
    slowest = min(results.verifying, key=lambda verifying: verifying.per_second)
    rss = max(results.daemon.idle.rss, results.daemon.after.rss)
    loading = results.loading.seconds.median
    rows = [
        _exec_goal("ungoverned", fork.ungoverned_ratio, goals.UNGOVERNED),
        _exec_goal("governed", fork.governed_ratio, goals.GOVERNED),
        (
            "`egs run` of /bin/true, median",
            f"≤ {goals.LAUNCH_MS:g} ms",
            _ms(run.time.median),
            _mark(run.time.median <= goals.LAUNCH_MS * 1e6),
        ),
        ("daemon, resident", f"≤ {goals.RSS_MIB:g} MiB", f"{rss:.1f} MiB", _mark(rss <= goals.RSS_MIB)),
        (
            "gate load, median",
            f"≤ {goals.LOAD_SECONDS:g} s",
            f"{loading:.2f} s",
            _mark(loading <= goals.LOAD_SECONDS),
        ),
        (
            "verifications per second and core",
            f"≥ {goals.VERIFICATIONS:,.0f}",
            f"{slowest.per_second:,.0f} ({slowest.algorithm})",
            _mark(slowest.per_second >= goals.VERIFICATIONS),
        ),
    ]
    return "## Goals\n\n" + table(("figure", "goal", "measured", ""), rows)


def _exec_goal(kind: str, ratio: Ratio, goal: float) -> tuple[str, ...]:
    """By the median; and whether the run could have told otherwise."""
    text = _mark(ratio.median <= goal)
    if ratio.low <= goal < ratio.high:
        text += " (the interval holds both)"
    return f"fork+exec, {kind}: with the gate / without", f"≤ {goal}", _ratio(ratio), text


def _execs(results: Results) -> str:
    rows = [row for execs in results.execs for row in _exec_rows(execs)]
    header = (
        "fork+exec+wait of a static program",
        "median",
        "p99",
        "ratio, 95 % interval",
        "pairs, least-most",
    )
    return "## Fork and exec\n\n" + table(header, rows)


def _exec_rows(execs: Execs) -> Iterable[tuple[str, ...]]:
    yield (f"{execs.method}: without the gate", *_us_of(execs.without), *_control(execs.control_ratio))
    yield (
        f"{execs.method}: gate loaded, ungoverned",
        *_us_of(execs.ungoverned),
        *_pair(execs.ungoverned_ratio),
    )
    yield (f"{execs.method}: governed, standing grant", *_us_of(execs.governed), *_pair(execs.governed_ratio))


def _control(ratio: Ratio) -> tuple[str, str]:
    interval, pairs = _pair(ratio)
    return f"itself: {interval}", pairs


def _programs(results: Results) -> str:
    rows = [
        (f"`{name}`", f"{program.ungoverned:.0f} ns", f"{program.governed:.0f} ns")
        for name, program in results.programs.items()
    ]
    total = [
        sum(getattr(program, kind) for program in results.programs.values())
        for kind in ("ungoverned", "governed")
    ]
    rows.append(("all three", f"{total[0]:.0f} ns", f"{total[1]:.0f} ns"))
    return (
        "## Run time of the gate's programs\n\nMean, as the kernel counts it (`BPF_ENABLE_STATS`, which itself adds to it):\n\n"
        + table(("program", "ungoverned", "governed"), rows)
    )


def _fapolicyd(results: Results) -> str:
    peer = results.fapolicyd
    if isinstance(peer, Peer):
        rows = [
            ("fork: on a mount that it does not watch", *_us_of(peer.without), *_control(peer.control_ratio)),
            ("fork: under fapolicyd, trusted by SHA-256", *_us_of(peer.under), *_pair(peer.ratio)),
        ]
        header = (f"fapolicyd {peer.version}", "median", "p99", "ratio, 95 % interval", "pairs, least-most")
        body = table(header, rows)
    else:
        body = f"Not measured in this run: {peer}."
    return f"## The same under fapolicyd\n\n{body}"


def _launches(results: Results) -> str:
    rows = [
        (
            launch.title,
            f"`{launch.command}`",
            _ms(launch.time.median),
            _ms(launch.time.p99),
            "" if launch.egs_ratio is None else _ratio(launch.egs_ratio),
        )
        for launch in results.launches
    ]
    count = results.launches[0].time.count
    header = ("started with", "command", "median", "p99", "`egs run` / this")
    return f"## Launches\n\nFrom before the fork until after the wait, {count} rounds:\n\n" + table(
        header, rows
    )


def _daemon(results: Results) -> str:
    daemon = results.daemon
    rows = [
        (name, f"{memory.rss:.1f} MiB", f"{memory.pss:.1f} MiB", f"{memory.uss:.1f} MiB")
        for name, memory in (("idle", daemon.idle), (f"after {daemon.execs:,} governed execs", daemon.after))
    ]
    return (
        "## The daemon\n\n"
        + table(("", "resident", "proportional (PSS)", "its own (USS)"), rows)
        + f"\n\nCPU of the daemon for each governed exec (drain, chain, write, sync; beside the exec, not in it): {daemon.cpu_us:.0f} us."
    )


def _loading(results: Results) -> str:
    loading = results.loading
    return (
        "## Loading the gate\n\n"
        f"`egs gate load`, compile to self-test: median {loading.seconds.median:.2f} s, slowest {loading.most:.2f} s of "
        f"{loading.seconds.count}; the loader's peak memory {loading.peak_rss:.0f} MiB, gone when it exits."
    )


def _verifying(results: Results) -> str:
    rows = [
        (
            verifying.algorithm,
            f"{verifying.per_second:,.0f}",
            f"{verifying.slowest:,.0f}",
            _us(verifying.time.median),
            _us(verifying.time.p99),
            f"{verifying.size:,}",
        )
        for verifying in results.verifying
    ]
    header = ("signature", "per second and core", "slowest block", "median", "p99", "bytes")
    return "## Verifying artifacts\n\nAll fifteen steps, nothing cached:\n\n" + table(header, rows)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mark(met: bool) -> str:  # noqa: FBT001 - a yes or no to be shown
    return "met" if met else "**missed**"


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f})"


def _pair(ratio: Ratio) -> tuple[str, str]:
    return _ratio(ratio), f"{ratio.pairs}, {ratio.least:.3f}-{ratio.most:.3f}"


def _us_of(summary: Summary) -> tuple[str, str]:
    return _us(summary.median), _us(summary.p99)


def _us(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e3:.1f} us"


def _ms(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e6:.1f} ms"
