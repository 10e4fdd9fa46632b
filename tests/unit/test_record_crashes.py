"""A crash, a power loss or a refusal of the disk at every single step of appending, publishing, trimming and recovering.

Whatever happens where: what was acknowledged is there, in order; and every checkpoint that was ever signed is of the tree that
there is in the end. Entries that were durable and not signed yet are signed by the next start.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from egs_kernel.audit import record, segments
from egs_kernel.audit.check import unsigned, verify
from egs_kernel.audit.entries import DaemonStopped, Gap
from egs_kernel.audit.merkle import Frontier, leaf_hash
from egs_kernel.audit.reader import Reader, read
from egs_kernel.errors import RecordError
from tests.recording import Crash, Disk, abandon, log_keys, open_record

BATCHES = (3, 130, 200, 150, 60)
"""Entries of each append: two bundles become full, and the journal has a file for each append."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that is trimmed after some hundred entries."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 1000)
    monkeypatch.setattr(record, "TRIM_FILES", 1)
    monkeypatch.setattr(record, "SAVE_EVERY", 100)


@dataclass
class Story:
    """What was done to a record, and what of it was acknowledged."""

    folder: Path
    before: Callable[[int, str], None]
    tried: list[str] = field(default_factory=list)
    acknowledged: int = 0
    disk: Disk = field(init=False)

    def run(self) -> None:
        """Append all batches, publishing after each; ends by a Crash, if there is to be one."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.folder.parent / "grave", ignore_errors=True)
        self.folder.mkdir()
        self.disk = Disk(self.folder, self.before)
        opened = open_record(self.folder, files=self.disk, in_background=False)
        try:
            for count in BATCHES:
                self._append(opened, count)
                opened.publish()
        finally:
            abandon(opened)

    def _append(self, opened: record.Record, count: int) -> None:
        texts = [str(len(self.tried) + number) for number in range(count)]
        self.tried += texts
        opened.append([DaemonStopped(cause=text) for text in texts])
        self.acknowledged = len(self.tried)


def steps_of(folder: Path) -> list[str]:
    story = Story(folder, lambda _number, _name: None)
    story.run()
    return story.disk.steps


def crash_at(step: int) -> Callable[[int, str], None]:
    def before(number: int, _name: str) -> None:
        if number == step:
            raise Crash

    return before


def require_sound(story: Story, disk: Disk) -> None:
    """What must hold after whatever happened, once the record was opened again."""
    found = [got.entry for got in read(story.folder)]
    causes = [entry.cause for entry in found if isinstance(entry, DaemonStopped)]
    assert causes == story.tried[: len(causes)]  # nothing else, and in order
    assert len(causes) >= story.acknowledged  # nothing lost
    assert len(causes) + sum(isinstance(entry, Gap) for entry in found) == len(found)
    verified = verify(story.folder, log_keys(story.folder).listed.verifiers)
    assert verified.published == verified.size  # all of it is signed
    roots = roots_of(story.folder)
    for note in story.disk.signed + disk.signed:
        checkpoint = unsigned(note)
        assert roots[checkpoint.size] == checkpoint.root  # never forked


def roots_of(folder: Path) -> list[bytes]:
    frontier = Frontier()
    roots = [frontier.root()]
    for line in Reader(folder).lines():
        frontier.extend([leaf_hash(line)])
        roots.append(frontier.root())
    return roots


def test_the_scenario_has_every_kind_of_step(tmp_path: Path) -> None:
    steps = steps_of(tmp_path / "record")
    assert set(steps) == {
        "write",
        "sync",
        "rename",
        "unlink",
        "make_folder",
        "remove_folder",
        "sync_folder",
        "sync_all",
    }
    assert steps.count("sync_all") >= 2
    assert len(list((tmp_path / "record/journal").iterdir())) < len(BATCHES)  # trimmed


@pytest.mark.parametrize("loss", ["process", "names", "power"])
def test_a_crash_at_every_step(tmp_path: Path, loss: str) -> None:
    folder = tmp_path / "record"
    count = len(steps_of(folder))
    assert count > 100
    for step in range(count):
        story = Story(folder, crash_at(step))
        with pytest.raises(Crash):
            story.run()
        if loss != "process":
            story.disk.lose_power(names_survive=loss == "names")
        reopen_and_require(story)


def reopen_and_require(story: Story) -> None:
    """Open the record anew, twice: what recovery wrote is sound, too, and so is what is appended then."""
    disk = Disk(story.folder)
    open_record(story.folder, files=disk, in_background=False).close()
    require_sound(story, disk)
    with open_record(story.folder, in_background=False, files=disk) as opened:
        size = opened.size
        assert opened.append([DaemonStopped(cause=str(len(story.tried)))]) == (size,)
    verify(story.folder, log_keys(story.folder).listed.verifiers)


@pytest.mark.parametrize("loss", ["process", "names", "power"])
def test_a_crash_at_every_step_of_a_recovery(tmp_path: Path, loss: str) -> None:
    """After a crash within a write: the tail is torn, tiles are missing, and then it crashes again."""
    folder, kept = tmp_path / "record", tmp_path / "kept"
    steps = steps_of(folder)
    torn = [number for number, name in enumerate(steps) if name == "write" and steps[number + 1] == "sync"]
    story = Story(folder, crash_at(torn[len(torn) // 2]))
    with pytest.raises(Crash):
        story.run()
    shutil.copytree(folder, kept)
    whole = Disk(folder)
    open_record(folder, files=whole, in_background=False).close()
    for step in range(len(whole.steps)):
        shutil.rmtree(folder)
        shutil.rmtree(folder.parent / "grave")
        shutil.copytree(kept, folder)
        disk = Disk(folder, crash_at(step))
        with pytest.raises(Crash):
            open_record(folder, files=disk, in_background=False).close()
        if loss != "process":
            disk.lose_power(names_survive=loss == "names")
        require_sound_after(story, disk)


def require_sound_after(story: Story, disk: Disk) -> None:
    again = Disk(story.folder)
    open_record(story.folder, files=again, in_background=False).close()
    again.signed += disk.signed
    require_sound(story, again)


def test_a_refusal_at_every_step(tmp_path: Path) -> None:
    """The disk says no once. What was not acknowledged is tried again; after a failed sync, by a new writer."""
    folder = tmp_path / "record"
    steps = steps_of(folder)
    for step, name in enumerate(steps):
        keep_on(folder, refuse_once(step, REFUSALS[step % len(REFUSALS)]), name)


REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def refuse_once(step: int, error: int) -> Callable[[int, str], None]:
    def before(number: int, _name: str) -> None:
        if number == step:
            raise OSError(error, os.strerror(error))

    return before


def keep_on(folder: Path, before: Callable[[int, str], None], name: str) -> None:
    shutil.rmtree(folder)
    shutil.rmtree(folder.parent / "grave")
    folder.mkdir()
    story = Story(folder, before)
    story.disk = Disk(folder, before)
    opened = None
    for count in BATCHES:
        texts = [str(len(story.tried) + number) for number in range(count)]
        done = False
        while not done:
            try:
                opened = opened or open_record(folder, files=story.disk, in_background=False)
                opened.append([DaemonStopped(cause=text) for text in texts])
                done = True
            except RecordError:
                if opened is not None and opened.failed:
                    assert name in {"sync", "sync_all", "truncate"}
                    opened.close()
                    opened = None
                    found = sum(isinstance(got.entry, DaemonStopped) for got in read(folder))
                    done = found == len(story.tried) + count  # it was written, though nobody was told
        story.tried += texts
        story.acknowledged = len(story.tried)
        try_to_publish(opened)
    if opened is not None:
        opened.close()
    open_record(folder, files=Disk(folder), in_background=False).close()
    require_sound(story, story.disk)


def try_to_publish(opened: record.Record | None) -> None:
    if opened is None:
        return
    try:
        opened.publish()
    except RecordError:
        assert opened.degraded is not None
        if not opened.failed:
            opened.publish()
            assert opened.degraded is None
