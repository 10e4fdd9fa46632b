"""A real record, served by the console while it grows: verified by the Go project's client, cosigned by a witness."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final

import pytest

from egs_kernel.audit.checkpoint import CHECKPOINT, open_checkpoint
from egs_kernel.audit.entries import DaemonStopped
from egs_kernel.audit.published import Published
from egs_kernel.audit.witnesses import Witness
from egs_kernel.paths import Paths
from egs_kernel.witness.submit import Submitter
from tests.recording import ORIGIN, log_keys, open_record
from tests.unit.consoles import READERS, ask, serving
from tests.unit.test_console_log import ME, client, verified  # noqa: F401 - client is a fixture
from tests.witnessing import witness_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egs_kernel.audit.record import Record

OPTIONS: Final = ("--listen", "127.0.0.1:0", "--entries")
GROUPS: Final = (READERS,) if ME == 0 else ()


@pytest.fixture
def root() -> Iterator[Path]:
    """An instance; what this process writes there is a group's, as what egsd writes under Group=egs-log is."""
    with tempfile.TemporaryDirectory() as name:
        instance = Path(name)
        instance.chmod(0o755)
        Paths.under(name).state_dir.mkdir(parents=True)
        before = os.getegid()
        if ME == 0:
            os.setegid(READERS)
        try:
            yield instance
        finally:
            os.setegid(before)


def fill(record: Record, folder: Path, count: int) -> bytes:
    """Append entries and publish them; the published checkpoint."""
    size = record.size
    record.append([DaemonStopped(cause=f"entry {size + number}") for number in range(count)])
    record.publish()
    return (folder / CHECKPOINT).read_bytes()


def key_of(root: Path) -> SimpleNamespace:
    """The log's verifier key, where the client's helper wants a tree's."""
    return SimpleNamespace(key=SimpleNamespace(key=log_keys(Paths.under(str(root)).record).listed.current))


def test_the_go_client_verifies_a_record_that_grows(client: Path, root: Path, tmp_path: Path) -> None:  # noqa: F811 - the fixture
    paths = Paths.under(str(root))
    olds: list[str] = []
    with (
        open_record(paths.record, in_background=False) as record,
        serving(root, *OPTIONS, groups=GROUPS) as address,
    ):
        for count in (1, 254, 2, 700):
            checkpoint = fill(record, paths.record, count)
            assert ask(address, "/log/checkpoint")[2] == checkpoint
            done = verified(client, address, key_of(root), *olds, 0, record.size // 2, record.size - 1)  # type: ignore[arg-type] # a tree's key is all it wants
            assert done.returncode == 0, done.stderr
            said = done.stdout.splitlines()
            assert said[0] == f"checkpoint {record.size}"
            assert [line.split(" ", 2)[1] for line in said if line.startswith("included")] == [
                "0",
                str(record.size // 2),
                str(record.size - 1),
            ]
            assert f"entry {record.size - 1}" in said[3]
            assert len([line for line in said if line.startswith("continues")]) == len(olds) // 2
            old = tmp_path / str(record.size)
            old.write_bytes(checkpoint)
            olds += ["-old", str(old)]
        # The clients of before can still prove what they have: partial tiles of each published size.
        for path in ("tile/0/000.p/1", "tile/0/000.p/255", "tile/entries/000.p/1", "tile/0/001.p/1"):
            assert ask(address, f"/log/{path}")[0] == 200, path


def test_a_witness_cosigns_a_record_that_grows_and_not_the_one_of_a_backup(
    root: Path, tmp_path: Path
) -> None:
    paths = Paths.under(str(root))
    key = log_keys(paths.record).listed.current
    with witness_of(key) as (address, witness_key):
        witness = Witness(f"http://{address[0]}:{address[1]}", witness_key)
        submitter = Submitter(witness, Published(paths.record))
        with open_record(paths.record, in_background=False) as record:
            for count in (1, 255, 1, 600):
                outcome = submitter.submit(fill(record, paths.record, count))
                assert outcome.problem == ""
                assert outcome.checkpoint is not None
                found = open_checkpoint(outcome.checkpoint, ORIGIN, [key], [witness_key])
                assert (found.checkpoint.size, set(found.witnesses)) == (record.size, {witness_key})
        backup = tmp_path / "backup"
        shutil.copytree(paths.record, backup)
        with open_record(paths.record, in_background=False) as record:
            assert submitter.submit(fill(record, paths.record, 9)).problem == ""
        shutil.rmtree(paths.record)
        shutil.copytree(backup, paths.record)
        with open_record(paths.record, in_background=False) as record:  # by itself nothing is wrong with it
            for count in (1, 8, 20):  # shorter, as long, longer
                outcome = submitter.submit(fill(record, paths.record, count))
                assert outcome.refused, outcome.problem
                assert outcome.checkpoint is not None
                shown = open_checkpoint(outcome.checkpoint, ORIGIN, [key], [witness_key])
                assert shown.checkpoint.size == 866
