"""The daemon's use of the record: real files, and a sync that fails or hangs when told to."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from egs_kernel.audit import record, segments
from egs_kernel.audit.archive import move_bundles
from egs_kernel.audit.entries import ArtifactChange, DaemonStopped, Decision
from egs_kernel.audit.files import Files
from egs_kernel.audit.layout import JOURNAL
from egs_kernel.audit.parts import INLINE_BYTES
from egs_kernel.audit.record import Record
from egs_kernel.daemon.journal import Journal
from egs_kernel.errors import RecordError
from egs_kernel.gate.grants import artifact_key
from egs_kernel.model import GrantKind, Reason, Verdict
from tests import recording

ARTIFACT = "ab" * 32
REVOKED = ArtifactChange(action="revoked", artifact_id=ARTIFACT)


def use() -> Decision:
    return Decision(
        verdict=Verdict.ALLOW,
        reason=Reason.AUTHORIZED,
        scope="test",
        policy_digest="",
        posture="",
        artifact_id=ARTIFACT,
        grant_kind=GrantKind.ARMED,
        use_until="2999-01-01T00:00:00Z",
    )


class Hooked(Files):
    """The disk, with a sync of the journal that a test looks at or lets fail."""

    def __init__(self, sync: Callable[[int], None]) -> None:
        self._sync = sync

    def sync(self, descriptor: int) -> None:
        if JOURNAL in str(recording.path_of(descriptor)):
            self._sync(descriptor)
        else:
            super().sync(descriptor)


def open_record(folder: Path, sync: Callable[[int], None] = os.fdatasync) -> Record:
    return recording.open_record(folder / "record", files=Hooked(sync))


@pytest.mark.parametrize("before", [100, 249, 254])
def test_artifacts_are_found_as_far_as_their_entries_were_not_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """A daemon that starts again looks for what its executions run by; most of the record may be in cold storage."""
    long = "x" * (INLINE_BYTES + 1)  # in parts, of which the first are moved, or all but the entry itself
    old, newer = (
        ArtifactChange(action="presented", artifact_id=digit * 64, envelope=text)
        for digit, text in (("a", long), ("b", long))
    )

    async def found() -> set[str]:
        journal = Journal(open_record(tmp_path))
        wanted = {artifact_key(change.artifact_id) for change in (old, newer)}
        changes = await asyncio.to_thread(journal.artifacts, wanted)
        await journal.close()
        return {change.artifact_id[0] for change, _signers in changes if change.envelope == long}

    monkeypatch.setattr(segments, "SEGMENT_BYTES", 1000)
    monkeypatch.setattr(record, "TRIM_FILES", 1)
    stopped = DaemonStopped(cause="x")
    with recording.open_record(tmp_path / "record", in_background=False) as opened:
        for entries in ([stopped] * before, [old], [stopped] * 300, [newer], [stopped] * 300, [stopped]):
            opened.append(entries)
            opened.publish()
    assert asyncio.run(found()) == {"a", "b"}
    assert move_bundles(tmp_path / "record", tmp_path / "cold", 256) == 256
    assert asyncio.run(found()) == {"b"}


def test_what_is_handed_in_counts_at_once_and_after_a_restart(tmp_path: Path) -> None:
    async def first() -> None:
        journal = Journal(open_record(tmp_path))
        durable = journal.submit([use(), REVOKED])
        assert journal.uses() == {ARTIFACT: 1}
        assert not durable.done()
        await journal.append(use())
        assert durable.done()
        assert journal.size == 3
        await journal.close()

    async def second() -> None:
        journal = Journal(open_record(tmp_path))
        assert journal.uses() == {ARTIFACT: 2}
        await journal.append(use())
        assert journal.uses() == {ARTIFACT: 3}
        await journal.close()

    asyncio.run(first())
    asyncio.run(second())


def test_all_that_wait_share_a_sync(tmp_path: Path) -> None:
    syncs = []

    def sync(descriptor: int) -> None:
        syncs.append(descriptor)
        os.fdatasync(descriptor)

    async def scenario() -> None:
        journal = Journal(open_record(tmp_path, sync))
        await asyncio.gather(*(journal.append(use()) for _ in range(50)))
        assert journal.size == 50
        assert len(syncs) <= 2
        await journal.close()

    asyncio.run(scenario())


def test_a_hanging_disk_shows_and_hangs_nothing_else(tmp_path: Path) -> None:
    go_on = threading.Event()

    def sync(descriptor: int) -> None:
        assert go_on.wait(20)
        os.fdatasync(descriptor)

    async def scenario() -> None:
        journal = Journal(open_record(tmp_path, sync))
        durable = journal.submit([use()])
        started = asyncio.get_running_loop().time()
        while journal.delay() == 0:
            assert asyncio.get_running_loop().time() - started < 10
            await asyncio.sleep(0)
        assert not durable.done()
        go_on.set()
        await durable
        await journal.flush()
        assert journal.delay() == 0
        await journal.close()

    asyncio.run(scenario())


def test_a_failing_disk_ends_it(tmp_path: Path) -> None:
    def sync(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    async def scenario() -> None:
        journal = Journal(open_record(tmp_path, sync))
        with pytest.raises(RecordError):
            await journal.append(use())
        assert (await journal.failure).reason is Reason.RECORD_UNAVAILABLE
        await journal.close()

    asyncio.run(scenario())


def test_an_entry_that_cannot_be_recorded_takes_no_other_along(tmp_path: Path) -> None:
    too_large = DaemonStopped(cause="x" * 2**20)

    async def scenario() -> None:
        journal = Journal(open_record(tmp_path))
        good, bad, also_good = (
            journal.submit([use()]),
            journal.submit([use(), too_large]),
            journal.submit([use()]),
        )
        with pytest.raises(RecordError):
            await bad
        await good
        await also_good
        assert journal.size == 2
        assert not journal.failure.done()
        assert journal.uses() == {ARTIFACT: 3}, "nothing is handed back"
        await journal.close()

    asyncio.run(scenario())


def test_losing_what_already_happened_ends_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = Journal(open_record(tmp_path))
        durable = journal.submit([DaemonStopped(cause="x" * 2**20)], essential=True)
        with pytest.raises(RecordError):
            await durable
        assert journal.failure.done()
        await journal.close()

    asyncio.run(scenario())
