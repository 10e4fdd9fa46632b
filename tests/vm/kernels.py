"""Debian's kernels as packages: found with apt on the mirror that it is configured with, unpacked, never installed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.vm.host import Lacking, cached, must, say

SUITES: Final = {
    "6.1": ("bookworm",),
    "6.12": ("bookworm-backports", "trixie"),
    "7.2": ("sid", "forky"),
}
"""Where a kernel is looked for; the first suite that has it gives it."""
RELEASES: Final = frozenset(
    {"bookworm", "trixie", "forky", "sid", "stable", "testing", "unstable", "oldstable"}
)
_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_META: Final = "linux-image-amd64"


@dataclass(frozen=True)
class Kernel:
    """One kernel, as its packages."""

    name: str
    folder: Path

    @property
    def release(self) -> str:
        """What `uname -r` says under it."""
        return (self.folder / "release").read_text()

    def unpack(self, tree: Path) -> Path:
        """Put the modules into a Debian's tree; the kernel itself, as a file there."""
        for package in self.folder.glob("*.deb"):
            # /lib is a link to usr/lib in the tree: what the package has in ./lib goes through it.
            must("sh", "-c", 'dpkg-deb --fsys-tarfile "$0" | tar -xC "$1" --keep-directory-symlink',
                 str(package), str(tree))  # fmt: skip
        places = (tree / f"boot/vmlinuz-{self.release}", tree / f"usr/lib/modules/{self.release}/vmlinuz")
        must("chroot", str(tree), "depmod", self.release)
        return next(place for place in places if place.exists())


def mirror() -> str:
    """The Debian mirror that apt is configured with on this host.

    Raises:
        Lacking: there is none.
    """
    for line in must("apt-get", "indextargets", "--format", "$(RELEASE) $(SITE)").splitlines():
        release, _, site = line.partition(" ")
        if release in RELEASES:
            return site
    raise Lacking("apt is configured with no mirror of Debian here (apt-get indextargets shows none)")


def fetch(name: str) -> Kernel:
    """A kernel from the cache; from its suite when it is not there yet.

    Raises:
        Lacking: no suite has it.
    """

    def download(folder: Path) -> None:
        for suite in SUITES[name]:
            apt = _Apt(folder / "apt", suite)
            release = apt.release()
            if not release.startswith(f"{name}."):
                say(f"{suite} has Linux {release or 'not at all'}, not {name}")
                continue
            say(f"downloading Linux {release} from {suite}")
            for package in apt.packages(release):
                must("apt-get", *apt.options, "download", package, folder=folder, seconds=900)
            (folder / "release").write_text(release)
            shutil.rmtree(folder / "apt")
            return
        raise Lacking(f"no Debian suite of {', '.join(SUITES[name])} has Linux {name} on this mirror")

    return Kernel(name, cached(f"kernel-{name}", download))


class _Apt:
    """An apt of our own that knows one suite and leaves the host's alone."""

    def __init__(self, folder: Path, suite: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("lists/partial", "cache/archives/partial", "empty"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {mirror()} {suite} main\n")
        settings = {
            "Dir::Etc::SourceList": folder / "sources.list",
            "Dir::Etc::SourceParts": folder / "empty",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": folder / "empty",
            "Dir::State::Lists": folder / "lists",
            "Dir::State::Status": folder / "status",
            "Dir::Cache": folder / "cache",
            "Acquire::Languages": "none",
            "APT::Architecture": "amd64",
            "APT::Sandbox::User": "root",
        }
        self.options = tuple(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))
        must("apt-get", *self.options, "update", "-qq", seconds=300)

    def release(self) -> str:
        """The release of the suite's kernel; empty when it has none."""
        wanted = re.search(r"\blinux-image-(\d\S*-amd64)\b", self._depends(_META))
        return wanted[1] if wanted else ""

    def packages(self, release: str) -> Iterator[str]:
        """The packages with the kernel's files: since 7.x an image package only depends on those."""
        yield f"linux-image-{release}"
        for name in re.findall(r"\blinux-[a-z]+-\S+", self._depends(f"linux-image-{release}")):
            if name in {f"linux-binary-{release}", f"linux-modules-{release}"}:
                yield name

    def _depends(self, package: str) -> str:
        shown = must("apt-cache", *self.options, "show", "--no-all-versions", package)
        return " ".join(line for line in shown.splitlines() if line.startswith("Depends:"))
