"""inotify on real files."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from egs_kernel.daemon.watch import FOLDER, Watcher, watch_files


class Watched:
    """A watcher, and what it told."""

    def __init__(self) -> None:
        self.lost = 0
        self.watcher = Watcher(self._lose)
        self.told: list[str] = []

    def _lose(self) -> None:
        self.lost += 1

    def touched(self) -> None:
        self.told.append("touched")

    def happened(self) -> list[str]:
        """What was told since the last call; inotify queues an event before the call that caused it returns."""
        self.told.clear()
        if select.select([self.watcher.fileno()], [], [], 0)[0]:
            self.watcher.dispatch()
        return list(self.told)


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.watcher.close()


def test_a_folder_tells_names(watched: Watched, tmp_path: Path) -> None:
    watched.watcher.add(tmp_path, FOLDER, watched.told.append)
    (tmp_path / "a.json").write_text("x")
    (tmp_path / "b.json").write_text("x")
    assert sorted(watched.happened()) == ["a.json", "b.json"]
    (tmp_path / "a.json").rename(tmp_path / "c.json")
    assert sorted(watched.happened()) == ["a.json", "c.json"]
    (tmp_path / "b.json").unlink()
    assert watched.happened() == ["b.json"]
    assert watched.happened() == []


@pytest.mark.parametrize(
    "change",
    [
        lambda program: program.write_bytes(b"other"),
        lambda program: program.chmod(0o700),
        lambda program: program.unlink(),
        lambda program: program.rename(program.with_name("elsewhere")),
        lambda program: program.with_name("fresh").rename(program),
        lambda program: program.touch(),
    ],
)
def test_a_program_that_is_touched(
    watched: Watched, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"program")
    (tmp_path / "fresh").write_bytes(b"fresh")
    watch_files(watched.watcher, [program], watched.touched)
    assert watched.happened() == []
    (tmp_path / "unrelated").touch()
    program.read_bytes()
    assert watched.happened() == []
    change(program)
    assert watched.happened()


def test_a_program_that_comes_later(watched: Watched, tmp_path: Path) -> None:
    watch_files(watched.watcher, [tmp_path / "program"], watched.touched)
    (tmp_path / "program").touch()
    assert watched.happened()


def test_a_link_on_the_way_that_leads_elsewhere(watched: Watched, tmp_path: Path) -> None:
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "program").touch()
    current = tmp_path / "current"
    current.symlink_to("v1")
    watch_files(watched.watcher, [current / "program"], watched.touched)
    (tmp_path / "next").symlink_to("v2")
    assert watched.happened() == []
    (tmp_path / "next").rename(current)
    assert watched.happened()


def test_two_listen_and_one_leaves(watched: Watched, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.touch()
    first = watch_files(watched.watcher, [program], lambda: watched.told.append("first"))
    watch_files(watched.watcher, [program], lambda: watched.told.append("second"))
    program.write_text("x")
    assert set(watched.happened()) == {"first", "second"}
    for watch, listener in first:
        watched.watcher.remove(watch, listener)
    program.write_text("y")
    assert set(watched.happened()) == {"second"}
