"""scripts/bench log: appending, proving and verifying, beside SQLite doing the same appends."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import random
import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from egs_kernel import __version__
from egs_kernel.audit.check import verify
from egs_kernel.audit.edge import Batch, Edge
from egs_kernel.audit.entries import Exec
from egs_kernel.audit.files import Files
from egs_kernel.audit.growth import TOGETHER
from egs_kernel.audit.layout import TileFolder
from egs_kernel.audit.lines import encode, encode_all, timestamp
from egs_kernel.audit.logkeys import LogKeys
from egs_kernel.audit.merkle import Frontier, inclusion_proof, root, verify_inclusion
from egs_kernel.audit.record import Record
from egs_kernel.audit.tiles import HEIGHT, nodes_of
from egs_kernel.model import FileIdentity, GrantKind
from tests.bench import machine
from tests.bench.log_memory import memory_while_appending
from tests.bench.part import Part
from tests.bench.report import table
from tests.bench.stats import Ratio, Summary, compare, summarize
from tests.bench.subject import Memory
from tests.bench.timers import say
from tests.samples import exec_event

BATCH: Final = 1000
"""Entries of one append."""
APPENDERS: Final = 2
"""Threads that append: one makes its entries while those of the other are synced."""
LEAVES: Final = 10_000_000
"""Of the tree that inclusion proofs are out of."""
FLAT_MIB: Final = 8
"""What nine million entries more may add: less than one byte each. What waits to be published comes and goes."""


class Plan(msgspec.Struct, frozen=True):
    """How much of everything.

    `block`: entries of a round; `singles`: appends of one entry; `leaves`: of the proofs' tree; `memory`: entries that are
    appended by the process whose memory is looked at.
    """

    rounds: int
    block: int
    singles: int
    leaves: int
    proofs: int
    memory: int


FULL: Final = Plan(rounds=20, block=50_000, singles=1000, leaves=LEAVES, proofs=2000, memory=LEAVES)
QUICK: Final = Plan(rounds=4, block=5_000, singles=100, leaves=100_000, proofs=100, memory=100_000)


class Rate(msgspec.Struct, frozen=True):
    """Entries each second, and microseconds of CPU time (all threads) for each."""

    wall: float
    cpu: float


class Log(msgspec.Struct, frozen=True):
    """What scripts/bench log measured. Times of one thing: microseconds."""

    date: str
    version: str
    machine: machine.Machine
    disturbances: tuple[str, ...]
    entries: int
    entry_bytes: int
    record: Rate
    sqlite: Rate
    time_ratio: Ratio
    cpu_ratio: Ratio
    sync: Summary
    single: Summary
    single_ratio: Ratio
    leaves: int
    proof: Summary
    verify_seconds: float
    verify_cpu_seconds: float
    appended: int
    memory: tuple[Memory, ...]


def measure(folder: Path, plan: Plan) -> Log:
    """Everything, one after the other."""
    load = machine.load()
    keys = LogKeys.open(folder / "log-keys", "egs-kernel/bench/record", time.time)
    blocks: dict[str, list[tuple[float, float]]] = {"record": [], "sqlite": []}
    with Record.open(folder / "record", keys) as record, _sqlite(folder / "sqlite.db") as database:
        say("appending")
        for number in range(plan.rounds):
            start = number * plan.block
            entries = [_entry(each) for each in range(start, start + plan.block)]
            gc.collect()
            gc.freeze()  # they are not what is measured
            for name in ("record", "sqlite") if number % 2 else ("sqlite", "record"):
                since = time.perf_counter(), time.process_time()
                if name == "record":
                    _append(record, entries)
                else:
                    _insert(database, entries, start)
                blocks[name].append((time.perf_counter() - since[0], time.process_time() - since[1]))
            gc.unfreeze()
        size = record.size
    say("verifying")
    since = time.perf_counter(), time.process_time()
    verify(folder / "record", keys.listed.verifiers)
    verified = time.perf_counter() - since[0], time.process_time() - since[1]
    say("appending one by one")
    with Record.open(folder / "record", keys) as record, (folder / "bare").open("ab", buffering=0) as bare:
        syncs, singles = _singles(record, bare.fileno(), plan.singles)
    say(f"a tree of {plan.leaves:,} leaves")
    proofs = _proofs(folder / "tree", plan)
    say(f"the memory of a process that appends {plan.memory:,} entries")
    memory = memory_while_appending(folder / "alone", plan.memory)
    walls = {name: [wall for wall, _cpu in found] for name, found in blocks.items()}
    cpus = {name: [cpu for _wall, cpu in found] for name, found in blocks.items()}
    return Log(
        date=datetime.now(UTC).date().isoformat(),
        version=__version__,
        machine=machine.describe(folder),
        disturbances=machine.disturbances(load, []),
        entries=size,
        entry_bytes=len(_line(0)),
        record=Rate(size / sum(walls["record"]), sum(cpus["record"]) / size * 1e6),
        sqlite=Rate(size / sum(walls["sqlite"]), sum(cpus["sqlite"]) / size * 1e6),
        time_ratio=compare(walls["sqlite"], walls["record"]),
        cpu_ratio=compare(cpus["sqlite"], cpus["record"]),
        sync=summarize(syncs),
        single=summarize(singles),
        single_ratio=compare(syncs, singles),
        leaves=plan.leaves,
        proof=summarize(proofs),
        verify_seconds=verified[0],
        verify_cpu_seconds=verified[1],
        appended=plan.memory,
        memory=tuple(memory),
    )


def _entry(number: int) -> Exec:
    """An exec as the gate tells of it."""
    event = exec_event(
        time=9_123_456_789_012 + number,
        execution=2**63 + number,
        parent_execution=2**63,
        grant_id=17,
        grant_kind=GrantKind.STANDING,
        artifact_id="c7c5c1d70c5dec4416ab6158afd0b223ef40c29b1dc1f97ed9428b94d4cadb1c",
        file=FileIdentity(265289728, 1443058, 2874190035, 44016, 1754321000, 120000000),
        pid=4243,
        parent_pid=4242,
        cgroup_id=5301,
        start_ticks=91301 + number,
        no_new_privs=True,
        seccomp_mode=2,
        seccomp_filters=1,
        comm="python3",
        filename="/usr/bin/python3",
        argv=("python3", "-m", "agent.worker", "--task", str(number)),
        argv_bytes=40,
    )
    return Exec(event=event)


def _line(number: int) -> bytes:
    return encode(_entry(number), seq=number, time=timestamp(time.time_ns()))


def _append(record: Record, entries: Sequence[Exec]) -> None:
    """Append entries, and publish them."""
    batches = [entries[first : first + BATCH] for first in range(0, len(entries), BATCH)]
    with ThreadPoolExecutor(APPENDERS) as appenders:
        for _seqs in appenders.map(record.append, batches):
            pass
    record.publish()


def _insert(database: sqlite3.Connection, entries: Sequence[Exec], start: int) -> None:
    """The same entries into a table, as many to a transaction."""
    for first in range(0, len(entries), BATCH):
        now = timestamp(time.time_ns())
        rows = (
            row
            for at in range(first, first + BATCH, TOGETHER)
            for row in enumerate(
                encode_all(entries[at : min(at + TOGETHER, first + BATCH)], first=start + at, time=now),
                start + at,
            )
        )
        with database:
            database.executemany("INSERT INTO entries VALUES (?, ?)", rows)


@contextlib.contextmanager
def _sqlite(path: Path) -> Iterator[sqlite3.Connection]:
    database = sqlite3.connect(path)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE entries (seq INTEGER PRIMARY KEY, line BLOB NOT NULL)")
        yield database
    finally:
        database.close()


def _singles(record: Record, bare: int, count: int) -> tuple[list[float], list[float]]:
    """Microseconds of a bare append of a line and its fdatasync, and of an entry's append, by turns."""
    syncs, singles = [], []
    for number in range(count):
        line, entry = _line(number), _entry(number)
        since = time.perf_counter_ns()
        os.write(bare, line)
        os.fdatasync(bare)
        syncs.append((time.perf_counter_ns() - since) / 1000)
        since = time.perf_counter_ns()
        record.append([entry])
        singles.append((time.perf_counter_ns() - since) / 1000)
    return syncs, singles


def _proofs(folder: Path, plan: Plan) -> list[float]:
    """Microseconds of inclusion proofs out of tiles on the disk; each is verified."""
    files, edge, frontier = Files(), Edge(), Frontier()
    for first in range(0, plan.leaves, 1 << 16):
        count = min(1 << 16, plan.leaves - first)
        leaves = [hashlib.sha256(number.to_bytes(8)).digest() for number in range(first, first + count)]
        for tile, content in edge.grow(Batch([b""] * count, leaves, frontier.extend(leaves, HEIGHT))):
            if tile.level is not None:
                files.make_folder((folder / tile.path).parent)
                files.put(folder / tile.path, content)
    for tile in edge.partial():
        files.make_folder((folder / tile.path).parent)
        files.put(folder / tile.path, edge.content(tile))
    chosen = random.Random(1)  # noqa: S311 - any entries will do
    times = []
    for _proof in range(plan.proofs):
        seq = chosen.randrange(plan.leaves)
        since = time.perf_counter_ns()
        nodes = nodes_of(TileFolder(folder).read, plan.leaves)  # nothing is kept from one proof to the next
        proof = inclusion_proof(seq, plan.leaves, nodes)
        times.append((time.perf_counter_ns() - since) / 1000)
        leaf = hashlib.sha256(seq.to_bytes(8)).digest()
        verify_inclusion(leaf, seq, plan.leaves, proof, frontier.root())
    if root(plan.leaves, nodes) != frontier.root():
        raise RuntimeError("the tiles are not those of the tree")
    return times


def render(log: Log) -> str:
    """What stands between the markers."""
    host = log.machine
    beside = f" **Disturbed**: {'; '.join(log.disturbances)}." if log.disturbances else ""
    rate, single, proof = log.record.wall, log.single_ratio.median, log.proof.median / 1000
    growth = log.memory[-1].uss - log.memory[0].uss
    goals = [
        ("durable entries per second, sustained", "≥ 100,000", f"{rate:,.0f}", _mark(met=rate >= 100_000)),
        ("one entry / one fdatasync, median", "≤ 1.5", _ratio(log.single_ratio), _mark(met=single <= 1.5)),
        (
            f"inclusion proof, of {log.leaves:,} entries, median",
            "≤ 2 ms",
            f"{proof:.2f} ms",
            _mark(met=proof <= 2),
        ),
        (
            f"verify {log.entries:,} entries",
            "≤ 10 s for 1,000,000",
            f"{log.verify_seconds:.1f} s ({log.verify_cpu_seconds:.1f} s of CPU time)",
            _mark(met=log.verify_seconds * 1e6 / log.entries <= 10),
        ),
        (
            f"memory of a process that appends, after {log.appended:,} entries more than after {log.appended // len(log.memory):,}",
            "flat",
            f"{growth:+.1f} MiB (of {log.memory[0].uss:.0f})",
            _mark(met=growth < FLAT_MIB),
        ),
    ]
    rows = [
        ("record", f"{log.record.wall:,.0f}", f"{log.record.cpu:.1f} us", ""),
        (
            "SQLite, WAL, synchronous=FULL",
            f"{log.sqlite.wall:,.0f}",
            f"{log.sqlite.cpu:.1f} us",
            f"time {_ratio(log.time_ratio)}; CPU time {_ratio(log.cpu_ratio)}",
        ),
    ]
    times = [
        ("bare append and fdatasync", f"{log.sync.median:,.0f} us", f"{log.sync.p99:,.0f} us"),
        ("one entry", f"{log.single.median:,.0f} us", f"{log.single.p99:,.0f} us"),
        ("inclusion proof", f"{log.proof.median:,.0f} us", f"{log.proof.p99:,.0f} us"),
    ]
    return (
        f"Measured on {log.date} with egs-kernel {log.version} on a {'virtual ' * host.virtual}machine: "
        f"{host.cpu}, {host.cores} cores; Linux {host.kernel}, Python {host.python}; {host.record_on}.{beside}\n\n"
        f"{table(('figure', 'goal', 'measured', ''), goals)}\n\n"
        f"Entries of {log.entry_bytes} bytes, {BATCH:,} to an append; the record from {APPENDERS} threads, SQLite from one:\n\n"
        f"{table(('', 'entries per second', 'CPU time of each', 'record / this'), rows)}\n\n"
        f"{table(('', 'median', 'p99'), times)}"
    )


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f})"


def _mark(*, met: bool) -> str:
    return "met" if met else "**missed**"


PART: Final = Part(
    name="log",
    description=__doc__,
    kind=Log,
    measure=lambda folder, quick: measure(folder, QUICK if quick else FULL),
    render=render,
    root=False,
)
