"""One benchmark with a part of docs/benchmarks.md of its own: its command line, its results, its place in the document."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

import msgspec

from tests.bench import machine
from tests.bench.report import replaced
from tests.bench.timers import say
from tests.harness import REPOSITORY

DOCUMENT: Final = REPOSITORY / "docs/benchmarks.md"
RESULTS: Final = Path(__file__).parent / "results"

R = TypeVar("R", bound=msgspec.Struct)


@dataclass(frozen=True)
class Part(Generic[R]):
    """A benchmark.

    Attributes:
        name: `scripts/bench NAME`.
        description: what --help says.
        kind: the type of its results.
        measure: measures everything, in an empty folder; `quick` for a smoke test.
        render: what stands in the document.
        root: whether it needs to be root: it loads the gate.
    """

    name: str
    description: str
    kind: type[R]
    measure: Callable[[Path, bool], R]
    render: Callable[[R], str]
    root: bool = True

    @property
    def markers(self) -> tuple[str, str]:
        """Between which lines its part of the document stands."""
        begin, end = (f"<!-- written by scripts/bench {self.name}: {which} -->" for which in ("begin", "end"))
        return begin, end

    @property
    def latest(self) -> Path:
        """The results that the document shows."""
        return RESULTS / f"{self.name}.json"

    def read(self) -> R:
        """Those results."""
        return msgspec.json.decode(self.latest.read_bytes(), type=self.kind)

    def run(self, arguments: list[str]) -> None:
        """Measure, print, and write results and document."""
        parser = argparse.ArgumentParser(
            prog=f"scripts/bench {self.name}", description=self.description, allow_abbrev=False
        )
        parser.add_argument("--quick", action="store_true", help="a smoke test: prints, writes nothing")
        quick = parser.parse_args(arguments).quick
        if self.root and os.geteuid() != 0:
            sys.exit("bench: it loads the gate, and must be root")
        signal.signal(signal.SIGTERM, machine.end_properly)
        with tempfile.TemporaryDirectory(prefix="egs-bench-", dir="/var/tmp") as folder:
            measured = self.measure(Path(folder), quick)
        text = self.render(measured)
        sys.stdout.write(f"{text}\n")
        if quick:
            say("a quick run is a smoke test: nothing was written")
            return
        self.latest.write_bytes(msgspec.json.format(msgspec.json.encode(measured)) + b"\n")
        DOCUMENT.write_text(replaced(DOCUMENT.read_text(), text, self.markers))
        say(f"wrote {self.latest.relative_to(REPOSITORY)} and {DOCUMENT.relative_to(REPOSITORY)}")
