"""What `egs gate load` takes: the whole command, as an operator waits for it."""

from __future__ import annotations

import os
import subprocess
import time

import msgspec

from tests.bench.stats import Summary, summarize
from tests.bench.timers import END_WITH_US, say
from tests.harness import BIN, Instance


class Loading(msgspec.Struct, frozen=True):
    """Seconds from start to end (compile, load, self-test, pin), and the loader's peak memory, MiB."""

    seconds: Summary
    most: float
    peak_rss: float


def measure_loads(instance: Instance, *, times: int) -> Loading:
    """Load and unload; afterwards the gate is loaded."""
    seconds: list[float] = []
    peaks: list[int] = []
    for number in range(times):
        say(f"gate load {number + 1} of {times}")
        if number:
            instance.egs("gate", "unload")
        started = time.perf_counter()
        process = subprocess.Popen(
            [*END_WITH_US, str(BIN / "egs"), "gate", "load"],
            env=instance.environment,
            stdout=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds.append(time.perf_counter() - started)
        peaks.append(usage.ru_maxrss)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError("the gate cannot be loaded: see above")
    return Loading(summarize(seconds), max(seconds), max(peaks) / 1024)
