"""One Debian 12 for all machines, made once for each set of inputs and kept in ~/.cache/egs-kernel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.vm.host import CACHE, REPOSITORY, cached, digest, file_system, must, say, workshop
from tests.vm.kernels import mirror

CHECKOUT: Final = "/srv/egs-kernel"
VENV: Final = "/opt/venv"
"""The checkout's .venv, at home: it is mounted at CHECKOUT/.venv, as scripts/setup makes it."""
SYSTEM: Final = (
    "dbus",
    "iproute2",
    "kmod",
    "libpam-systemd",
    "systemd",
    "systemd-sysv",
    "udev",
)
_VERSION: Final = "1"
"""To be counted up when the way in which the disk is made changes: its key has only the inputs."""
DISK: Final = "disk.ext4"
DISK_SIZE: Final = "6G"
BUILD_TOOLS: Final = ("setuptools", "wheel", "hatchling", "editables~=0.3")


def base_disk() -> Path:
    """Debian with this checkout's package lists and lock file, as a file system; never written to."""
    base = debian()
    inputs = ("requirements-dev.lock", "pyproject.toml", "scripts/setup", "scripts/bin/egs")
    key = digest(_VERSION, base.name, *((REPOSITORY / name).read_bytes() for name in inputs))

    def make(folder: Path) -> None:
        say(f"making {CACHE}/debian-{key} (half a minute)")
        with workshop() as tree:
            unpack(base, tree)
            _make_venv(tree)
            file_system(folder / DISK, tree, DISK_SIZE)

    return cached(f"debian-{key}", make) / DISK


def debian() -> Path:
    """A Debian 12 with systemd and what scripts/setup --dev installs, as a tar file; made once."""
    wanted = ",".join(sorted({*SYSTEM, *setup_list("runtime"), *setup_list("development")}))
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
    os.utime(tar)
    return tar


def unpack(tar: Path, tree: Path) -> None:
    """A Debian as a tree, with the place where a machine mounts its kernel's modules."""
    must("tar", "--extract", "--file", str(tar), "--directory", str(tree))
    (tree / "usr/lib/modules").mkdir(exist_ok=True)


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


def setup_list(name: str) -> tuple[str, ...]:
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
