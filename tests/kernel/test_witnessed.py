"""The whole of it: a daemon whose record is cosigned by a witness, key after key, and set back from a backup."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from egs_kernel.audit.checkpoint import open_checkpoint
from egs_kernel.audit.entries import LogKeyChange, WitnessAlarm
from egs_kernel.audit.logkeys import read_keys
from tests.harness import BIN
from tests.running import SECONDS, running_on_disk
from tests.witnessing import witness_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egs_kernel.audit.notes import VerifierKey
    from tests.running import Running

pytestmark = pytest.mark.kernel


@contextmanager
def known_witness(running: Running) -> Iterator[VerifierKey]:
    """A witness that knows the log of this system, which knows it; its key."""
    key = read_keys(running.instance.paths.log_keys).current
    with witness_of(key) as ((host, port), witness):
        running.instance.configure(more=f'[[witness]]\nurl = "http://{host}:{port}"\nkey = "{witness}"\n')
        running.instance.egs("reload")
        yield witness


def submit(running: Running) -> tuple[int, str]:
    """Have all of the record cosigned, by a user without any rights who is in the record's group."""
    deadline = time.monotonic() + SECONDS
    while json.loads(running.instance.egs("audit", "show", "--json").stdout)["unpublished"]:
        assert time.monotonic() < deadline
    group = running.instance.paths.record.stat().st_gid
    done = running.as_nobody(str(BIN / "egs"), "witness", "submit", "--once", group=group)
    return done.returncode, done.stdout + done.stderr


def status(running: Running) -> Any:
    return json.loads(running.instance.egs("status", "--json").stdout)


def problems(running: Running) -> list[str]:
    found = status(running)["details"]["problems"]
    return [problem for problem in found if problem.startswith("witness ")]


def test_a_record_is_cosigned_and_one_that_was_set_back_is_an_alarm() -> None:
    with running_on_disk() as running, known_witness(running) as witness:
        paths = running.instance.paths
        (known,) = status(running)["details"]["witnesses"]
        assert (known["cosigned"], known["entries"]) == (0, 0)
        code, said = submit(running)
        assert (code, "cosigned at" in said) == (0, True), said
        (known,) = status(running)["details"]["witnesses"]
        assert (known["name"], known["diverged"], known["problem"]) == (witness.name, False, "")
        assert known["cosigned"] > 0
        assert f"cosigned at {known['entries']} entries" in said
        assert witness.name in running.instance.egs("status").stdout
        found = open_checkpoint(
            paths.cosigned.read_bytes(),
            witness_origin(running),
            read_keys(paths.log_keys).verifiers,
            [witness],
        )
        assert set(found.witnesses) == {witness}

        # While one key takes over, a witness that knows the one before cosigns.
        running.instance.egs("audit", "key", "rotate")
        assert len(running.entries(LogKeyChange)) == 1
        assert submit(running)[0] == 0

        running.stop()
        backup = running.folder / "backup"
        shutil.copytree(paths.record, backup)
        running.start()
        assert submit(running)[0] == 0
        assert problems(running) == []
        running.stop()
        shutil.rmtree(paths.record)
        shutil.copytree(backup, paths.record)
        running.start()  # by itself nothing is wrong with that record

        code, said = submit(running)
        assert code == 1, said
        assert "has seen another record" in said
        (alarm,) = running.entries(WitnessAlarm)
        assert alarm.problem in {"rolled_back", "forked"}
        assert alarm.checkpoint is not None
        shown = open_checkpoint(
            alarm.checkpoint.encode(), witness_origin(running), read_keys(paths.log_keys).verifiers, [witness]
        )
        assert set(shown.witnesses) == {witness}
        assert any("THE RECORD WAS" in problem for problem in problems(running))
        assert submit(running)[0] == 1
        assert len(running.entries(WitnessAlarm)) == 1


def witness_origin(running: Running) -> str:
    return read_keys(running.instance.paths.log_keys).origin
