"""Debian's kernels as packages: found with apt on the mirror that it is configured with, unpacked, never installed."""

from __future__ import annotations

import lzma
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.vm.host import Lacking, cached, digest, file_system, must, say, workshop

SUITES: Final = {
    "6.1": ("bookworm",),
    "6.12": ("bookworm-backports", "trixie"),
    "7.2": ("sid", "forky"),
}
"""Where a kernel is looked for; the first suite that has it gives it."""
RELEASES: Final = frozenset(
    {"bookworm", "trixie", "forky", "sid", "stable", "testing", "unstable", "oldstable"}
)
INITRD: Final = Path(__file__).parent / "guest/initrd"
WANTED_AT_BOOT: Final = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic")
"""Modules without which the disk cannot be mounted; a kernel may have some of them built in, or not at all."""
_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_META: Final = "linux-image-amd64"


@dataclass(frozen=True)
class Kernel:
    """One kernel, ready to boot: the file, a small initrd, and its modules as a file system."""

    name: str
    folder: Path

    @property
    def release(self) -> str:
        """What `uname -r` says under it."""
        return (self.folder / "release").read_text()

    @property
    def file(self) -> Path:
        """The kernel itself."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """What it starts from; see guest/initrd."""
        return self.folder / "initrd"

    @property
    def modules(self) -> Path:
        """What is to be mounted at /usr/lib/modules."""
        return self.folder / "modules.ext4"


def kernel(name: str) -> Kernel:
    """A kernel, from the cache when it is there.

    Raises:
        Lacking: no suite has it.
    """
    packages = _packages(name)
    key = digest(packages.name, (packages / "release").read_bytes(), INITRD.read_bytes(), *WANTED_AT_BOOT)
    return Kernel(name, cached(f"boot-{name}-{key}", lambda folder: _prepare(packages, folder)))


def _prepare(packages: Path, folder: Path) -> None:
    release = (packages / "release").read_text()
    (folder / "release").write_text(release)
    with workshop() as tree:
        for package in packages.glob("*.deb"):
            must("dpkg-deb", "--extract", str(package), str(tree))
        modules = tree / "modules"
        modules.mkdir()
        unpacked = next(place for place in (tree / "lib/modules", tree / "usr/lib/modules") if place.is_dir())
        for place in (tree / f"boot/vmlinuz-{release}", unpacked / release / "vmlinuz"):
            if place.exists():
                shutil.copy(place, folder / "vmlinuz")
        (unpacked / release).rename(modules / release)
        (tree / "usr/lib").mkdir(parents=True, exist_ok=True)
        shutil.rmtree(tree / "lib", ignore_errors=True)
        shutil.rmtree(tree / "usr/lib/modules", ignore_errors=True)
        (tree / "lib").symlink_to("usr/lib")
        (tree / "usr/lib/modules").symlink_to(modules)
        must("depmod", "--basedir", str(tree), release)
        file_system(folder / "modules.ext4", modules, "1G")
        _make_initrd(modules / release, folder / "initrd")


def _make_initrd(modules: Path, path: Path) -> None:
    with workshop() as content:
        for made in ("bin", "modules", "proc", "dev", "root"):
            (content / made).mkdir()
        shutil.copy(shutil.which("busybox") or "", content / "bin/busybox")
        shutil.copy(INITRD, content / "init")
        (content / "init").chmod(0o755)
        for number, module in enumerate(_modules_in_order(modules)):
            data = module.read_bytes()
            plain = lzma.decompress(data) if module.suffix == ".xz" else data
            (content / f"modules/{number:02}-{module.name.removesuffix('.xz')}").write_bytes(plain)
        must("sh", "-c", 'find . | cpio --quiet --create --format=newc > "$0"', str(path), folder=content)


def _modules_in_order(modules: Path) -> list[Path]:
    """The files of what is wanted at boot, each after what it depends on, by modules.dep."""
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        file, _, others = line.partition(":")
        needs[re.sub(r"\.ko(\.xz)?$", "", Path(file).name)] = [file, *others.split()]
    order: dict[str, None] = {}
    for name in WANTED_AT_BOOT:
        order |= dict.fromkeys(reversed(needs.get(name, [])))
    return [modules / file for file in order]


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


def _packages(name: str) -> Path:
    """A folder with a kernel's packages, and its release in a file; downloaded once."""

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

    return cached(f"kernel-{name}", download)


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
