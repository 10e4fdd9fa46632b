"""dpkg's own records, as files: which package a file belongs to, in which version, and with which content.

dpkg keeps MD5 sums. They tell a file that an upgrade or a hand left different from one that was packaged; they are
no defence against whoever can choose both contents. What is signed is a SHA-256 of the file as it is.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from egs_kernel.errors import UsageError
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

DPKG: Final = Path("/var/lib/dpkg")
_PROGRAMS: Final = re.compile(r"/(?:usr/)?(?:local/)?(?:s?bin|games|libexec)/|/usr/lib/")
_CHUNK: Final = 1 << 20


class Owner(NamedTuple):
    """The package of a file. `md5` "": dpkg has none of it, as of a configuration file."""

    package: str
    version: str
    md5: str


@dataclass(frozen=True)
class Packages:
    """The packages that are installed on a host.

    Attributes:
        versions: by package name.
        owners: the package of each file, by its path without symbolic links in its folder.
        sums: MD5 by path, as `owners`.
    """

    versions: dict[str, str]
    owners: dict[str, str]
    sums: dict[str, str]

    @classmethod
    def load(cls, folder: Path = DPKG) -> Packages:
        """Read dpkg's records; of a host without dpkg: nothing."""
        versions = _versions(folder / "status")
        owners: dict[str, str] = {}
        sums: dict[str, str] = {}
        folders: dict[str, str] = {}
        for path in sorted((folder / "info").glob("*.list")):
            name = path.stem.partition(":")[0]
            if name not in versions:
                continue
            for line in _lines(path):
                owners[_plain(line, folders)] = name
            for line in _lines(path.with_suffix(".md5sums")):
                md5, _, file = line.partition("  ")
                sums[_plain(f"/{file}", folders)] = md5
        return cls(versions, owners, sums)

    def owner(self, path: str) -> Owner | None:
        """The package of a file; None: it belongs to none."""
        name = self.owners.get(path)
        return None if name is None else Owner(name, self.versions[name], self.sums.get(path, ""))

    def programs(self, package: str) -> Iterator[Path]:
        """The executable files of a package, in the folders of programs.

        Raises:
            UsageError: it is not installed.
        """
        if package not in self.versions:
            raise UsageError(
                Reason.NOT_FOUND, f"the package {package!r} is not installed here", "Look: dpkg-query --list"
            )
        for file, name in self.owners.items():
            path = Path(file)
            if name == package and _PROGRAMS.match(file) and _is_executable(path):
                yield path


def md5_of(path: Path) -> str:
    """What dpkg would note of a file.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _versions(status: Path) -> dict[str, str]:
    """The installed packages; of several architectures the last."""
    found: dict[str, str] = {}
    fields: dict[str, str] = {}
    for line in (*_lines(status), ""):
        if not line:
            if fields.get("Status", "").endswith(" installed") and "Package" in fields:
                found[fields["Package"]] = fields.get("Version", "")
            fields = {}
        elif not line[0].isspace():
            name, _, value = line.partition(": ")
            fields[name] = value
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


def _plain(file: str, folders: dict[str, str]) -> str:
    """The path with its folder as it really is: /bin is /usr/bin today, and dpkg says both."""
    folder, _, name = file.rpartition("/")
    if folder not in folders:
        folders[folder] = str(Path(folder or "/").resolve()).rstrip("/")
    return f"{folders[folder]}/{name}"


def _is_executable(path: Path) -> bool:
    try:
        return path.is_file() and not path.is_symlink() and bool(path.stat().st_mode & 0o111)
    except OSError:
        return False
