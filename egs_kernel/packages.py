"""Which of the packages that a policy set names has a file, by dpkg's lists. A host without dpkg has none.

dpkg says what it put where, not what is there now: a path of a package is as trustworthy as who may write there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from egs_kernel.policy.questions import File, Program, Question

DPKG: Final = Path("/var/lib/dpkg")
_MERGED: Final = re.compile(r"/(?:bin|sbin|lib|lib32|lib64|libx32)/")
"""Folders that are symbolic links into /usr by now, while lists still name files by them."""
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9+.-]+")


class Packages:
    """The files of some packages. Read again when dpkg changed something."""

    def __init__(self, names: Iterable[str], folder: Path = DPKG) -> None:
        self._names = sorted(name for name in names if _NAME.fullmatch(name))
        self._folder = folder
        self._seen: tuple[int, int] | None = None
        self._owners: dict[str, str] = {}

    @property
    def known(self) -> bool:
        """Whether this host can tell: it has dpkg's lists."""
        return (self._folder / "status").exists()

    def of(self, path: str) -> str | None:
        """The package of the file at a path without symbolic links; None: it is of none of them."""
        if self._names:
            self._refresh()
        return self._owners.get(_plain(path))

    def filled(self, question: Question) -> Question:
        """The question with the packages of its files, where they were not known."""
        if not self._names:
            return question
        return replace(
            question,
            program=self._program(question.program),
            scripts=tuple(self._file(file) for file in question.scripts),
            libraries=tuple(self._file(file) for file in question.libraries),
            children=tuple(self._program(file) for file in question.children),
        )

    def _program(self, program: Program) -> Program:
        return program if program.package else replace(program, package=self.of(program.path))

    def _file(self, file: File) -> File:
        return file if file.package else replace(file, package=self.of(file.path))

    def _refresh(self) -> None:
        try:
            status = (self._folder / "status").stat()
        except OSError:
            self._owners = {}
            return
        seen = status.st_mtime_ns, status.st_ino
        if seen != self._seen:
            self._owners = {
                _plain(path): name for name in self._names for path in _listed(self._folder / "info", name)
            }
            self._seen = seen


def _listed(folder: Path, name: str) -> list[str]:
    for path in (folder / f"{name}.list", *sorted(folder.glob(f"{name}:*.list"))):
        try:
            return path.read_text("utf-8", "surrogateescape").splitlines()
        except OSError:
            continue  # not installed, or being replaced: it has no files now
    return []


def _plain(path: str) -> str:
    return f"/usr{path}" if _MERGED.match(path) else path
