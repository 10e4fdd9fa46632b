"""One Debian 12 for all machines: its disk, the kernels' modules on it, and a small initrd for each kernel.

Made once for each set of inputs and kept in ~/.cache/egs-kernel; a machine writes to an overlay of its own.
"""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.vm.host import CACHE, REPOSITORY, cached, digest, must, say
from tests.vm.kernels import SUITES, Kernel, fetch, mirror

CHECKOUT: Final = "/srv/egs-kernel"
VENV: Final = "/opt/venv"
"""The checkout's .venv, at home: it is mounted at CHECKOUT/.venv, as scripts/setup makes it."""
SYSTEM: Final = (
    "busybox-static",
    "dbus",
    "iproute2",
    "kmod",
    "libpam-systemd",
    "systemd",
    "systemd-sysv",
    "udev",
)
DISK_SIZE: Final = "8G"
WANTED_AT_BOOT: Final = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic")
"""Modules without which the disk cannot be mounted; a kernel may have some of them built in, or not at all."""
INITRD: Final = Path(__file__).parent / "guest/initrd"
BUILD_TOOLS: Final = ("setuptools", "wheel", "hatchling", "editables~=0.3")


@dataclass(frozen=True)
class Image:
    """A disk and the kernels that boot from it."""

    folder: Path

    @property
    def disk(self) -> Path:
        """The root file system; never written to."""
        return self.folder / "disk.ext4"

    def kernel(self, name: str) -> Path:
        """The kernel's file."""
        return self.folder / name / "vmlinuz"

    def initrd(self, name: str) -> Path:
        """Its initrd."""
        return self.folder / name / "initrd"

    def release(self, name: str) -> str:
        """What `uname -r` says under it."""
        return (self.folder / name / "release").read_text()


def base_image() -> Image:
    """The image for this checkout's package lists and lock file."""
    kernels = [fetch(name) for name in SUITES]
    base = debian((*SYSTEM, *_setup_list("runtime"), *_setup_list("development")))
    inputs = [
        REPOSITORY / name
        for name in ("requirements-dev.lock", "pyproject.toml", "scripts/setup", "scripts/bin/egs")
    ]
    key = digest(
        base.name,
        Path(__file__).read_bytes(),
        INITRD.read_bytes(),
        *(kernel.release for kernel in kernels),
        *(file.read_bytes() for file in inputs),
    )

    def make(folder: Path) -> None:
        say(f"making {CACHE}/image-{key} (a minute)")
        with tempfile.TemporaryDirectory(prefix="tree-", dir=CACHE) as name:
            tree = Path(name)
            must("tar", "--extract", "--file", str(base), "--directory", str(tree))
            _make_venv(tree)
            for kernel in kernels:
                _add_kernel(tree, kernel, folder / kernel.name)
            must("truncate", f"--size={DISK_SIZE}", str(folder / "disk.ext4"))
            must(
                "mkfs.ext4",
                "-q",
                "-E",
                "lazy_itable_init=0,lazy_journal_init=0",
                "-d",
                str(tree),
                str(folder / "disk.ext4"),
                seconds=300,
            )

    return Image(cached(f"image-{key}", make))


def debian(packages: Iterable[str]) -> Path:
    """A Debian 12 with these packages, as a tar file; made once."""
    wanted = ",".join(sorted(set(packages)))
    tar = CACHE / f"bookworm-{digest(wanted)}.tar"
    if not tar.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        say(f"making {tar} (two minutes)")
        part = tar.with_suffix(".part.tar")
        command = (
            "mmdebstrap",
            "--quiet",
            "--variant=apt",
            f"--include={wanted}",
            "bookworm",
            str(part),
            mirror(),
        )
        must(*command, seconds=1200)
        part.rename(tar)
    return tar


def wheels(lock: str) -> Path:
    """What pip needs for a lock file without a network; downloaded once."""
    file = REPOSITORY / lock

    def download(folder: Path) -> None:
        say(f"downloading the packages of {lock}")
        pip = (
            str(REPOSITORY / ".venv/bin/python"),
            "-m",
            "pip",
            "download",
            "--quiet",
            "--dest",
            str(folder),
        )
        must(*pip, "--require-hashes", "--requirement", str(file), seconds=900)
        must(*pip, *BUILD_TOOLS, seconds=600)

    return cached(f"wheels-{digest(file.read_bytes(), *BUILD_TOOLS)}", download)


def inside(tree: Path, script: str, *, wheels_at: str = "/srv/wheels") -> None:
    """Run a shell script in a Debian's tree, with an environment of its own, and no network."""
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": wheels_at,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "SYSTEMD_OFFLINE": "1",
    }
    must("chroot", str(tree), "/bin/sh", "-c", script, environment=environment, seconds=600)


def copy_checkout(folder: Path, commit: str | None = None) -> None:
    """The files of a commit, or of the working tree without what git ignores."""
    folder.mkdir(parents=True)
    git = ("git", "-C", str(REPOSITORY))
    if commit is not None:
        archive = subprocess.run((*git, "archive", commit), check=True, capture_output=True).stdout
    else:
        listed = subprocess.run(
            (*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"),
            check=True,
            capture_output=True,
        ).stdout
        present = b"\0".join(
            name for name in listed.split(b"\0") if name and (REPOSITORY / name.decode()).exists()
        )
        pack = (
            "tar",
            "-C",
            str(REPOSITORY),
            "--create",
            "--null",
            "--files-from=-",
            "--owner=0",
            "--group=0",
        )
        archive = subprocess.run(pack, check=True, input=present, capture_output=True).stdout
    subprocess.run(("tar", "--extract", "--directory", str(folder)), check=True, input=archive)


def _setup_list(name: str) -> tuple[str, ...]:
    """One of the package lists of scripts/setup."""
    found = re.search(rf"^{name}=\((.*)\)$", (REPOSITORY / "scripts/setup").read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"scripts/setup has no list {name}")
    return tuple(found[1].split())


def _make_venv(tree: Path) -> None:
    """As a person does it: scripts/setup --dev in the checkout, whose .venv then moves to a place that stays."""
    checkout = tree / CHECKOUT[1:]
    copy_checkout(checkout)
    shutil.copytree(wheels("requirements-dev.lock"), tree / "srv/wheels")
    inside(tree, f"cd {CHECKOUT} && scripts/setup --dev && mv .venv {VENV}")
    shutil.rmtree(tree / "srv/wheels")
    shutil.rmtree(checkout)


def _add_kernel(tree: Path, kernel: Kernel, folder: Path) -> None:
    """Its modules into the tree, itself and its initrd beside the disk."""
    folder.mkdir()
    shutil.copy(kernel.unpack(tree), folder / "vmlinuz")
    (folder / "release").write_text(kernel.release)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        content = Path(name)
        for made in ("bin", "modules", "proc", "dev", "root"):
            (content / made).mkdir()
        shutil.copy(tree / "bin/busybox", content / "bin/busybox")
        shutil.copy(INITRD, content / "init")
        (content / "init").chmod(0o755)
        modules = tree / "usr/lib/modules" / kernel.release
        for number, module in enumerate(_modules_in_order(modules)):
            data = module.read_bytes()
            plain = lzma.decompress(data) if module.suffix == ".xz" else data
            (content / f"modules/{number:02}-{module.name.removesuffix('.xz')}").write_bytes(plain)
        must(
            "sh",
            "-c",
            'find . | cpio --quiet --create --format=newc > "$0"',
            str(folder / "initrd"),
            folder=content,
        )


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
