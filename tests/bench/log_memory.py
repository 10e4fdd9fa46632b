"""What appending takes of a process's memory: run as a process of its own by scripts/bench log, beside nothing else."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from egs_kernel.audit.entries import DaemonStopped
from egs_kernel.audit.logkeys import LogKeys
from egs_kernel.audit.record import Record
from egs_kernel.daemon.memory import keep_small
from tests.bench.subject import Memory, parse_smaps

BATCH = 1000
STEPS = 10
"""How often the memory is looked at, on the way."""


def memory_while_appending(folder: Path, count: int) -> list[Memory]:
    """The memory of a process that does nothing but append `count` short entries, after each tenth of them."""
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, folder, str(count)], check=True, stdout=subprocess.PIPE
    )
    return msgspec.json.decode(done.stdout, type=list[Memory])


def _append(folder: Path, count: int) -> list[Memory]:
    keep_small()  # as egsd does
    keys = LogKeys.open(folder / "log-keys", "egs-kernel/bench/record", time.time)
    found = []
    with Record.open(folder / "record", keys) as record:
        for step in range(STEPS):
            for first in range(step * count // STEPS, (step + 1) * count // STEPS, BATCH):
                record.append([DaemonStopped(cause=str(number)) for number in range(first, first + BATCH)])
            record.publish()
            gc.collect()
            found.append(parse_smaps(Path("/proc/self/smaps_rollup").read_text()))
    return found


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode(_append(Path(sys.argv[1]), int(sys.argv[2]))).decode())
