"""fapolicyd, the distribution's own exec allow-listing daemon, on a mount that nobody else uses.

It is unpacked and never installed: an installed one would start and rule the whole host. It runs in mount
and process namespaces of its own, is told to watch ramfs, and the only ramfs there is the one mounted here, with
one program on it. Its folders are overlays in the same namespace. All of it ends with the first process of the
namespace, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from tests.bench.stats import Ratio, Summary, compare, median, rotated, summarize
from tests.bench.timers import END_WITH_US, Timer, say

PACKAGES: Final = ("fapolicyd", "liblmdb0")
METHOD: Final = "fork"
_OVERLAID: Final = ("etc", "var/lib", "var/log", "run")
_RULES: Final = "allow perm=execute all : trust=1\ndeny perm=execute all : all\nallow perm=open all : all\n"
_CONFIGURATION: Final = """\
permissive = 0
uid = 0
gid = 0
watch_fs = ramfs
trust = file
integrity = sha256
syslog_format = rule,dec,perm,pid,exe,:,path,trust
"""
_LISTENING: Final = "Starting to listen"
_SECONDS: Final = 120


class Peer(msgspec.Struct, frozen=True):
    """Fork, exec, wait of a static program, nanoseconds.

    Attributes:
        version: the package's.
        without: of the program on a mount that it does not watch.
        under: of the same on the mount that it watches.
        ratio: the second to the first.
        control_ratio: the same before it was started: what the two mounts differ by themselves.
    """

    version: str
    without: Summary
    under: Summary
    ratio: Ratio
    control_ratio: Ratio


class Work(msgspec.Struct, frozen=True):
    """What the process in the namespaces is told."""

    folder: str
    timer: str
    program: str
    version: str
    cpu: int
    rounds: int
    block: int


def measure_fapolicyd(folder: Path, work: Work) -> Peer | str:
    """Measure it, or say why not.

    Args:
        folder: for its files.
        work: what to measure; `folder` and `version` are filled in here.
    """
    say("fapolicyd")
    folder.mkdir()
    version = _unpack(folder)
    if version is None:
        return "apt-get did not download it"
    work = msgspec.structs.replace(work, folder=str(folder), version=version)
    namespaces = ("--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc")
    process = subprocess.Popen(
        [*END_WITH_US, "unshare", *namespaces, sys.executable, "-m", "tests.bench.fapolicyd"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    out, _ = process.communicate(msgspec.json.encode(work), timeout=_SECONDS)
    if process.returncode:
        return "it could not be run in namespaces of its own"
    return msgspec.json.decode(out, type=Peer)


def _unpack(folder: Path) -> str | None:
    download = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *PACKAGES]
    if subprocess.run(download, cwd=folder, check=False, stdin=subprocess.DEVNULL).returncode:
        return None
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "root")], check=True)
    return next(folder.glob("fapolicyd_*")).name.split("_")[1]


# -- in the namespaces ---------------------------------------------------------------------------


def _main() -> None:
    work = msgspec.json.decode(sys.stdin.buffer.read(), type=Work)
    folder = Path(work.folder)
    free, watched = _mount(folder / "mounts", Path(work.program))
    with (
        Timer(Path(work.timer), METHOD, [free], cpu=work.cpu) as outside,
        Timer(Path(work.timer), METHOD, [watched], cpu=work.cpu) as inside,
    ):
        control = _pairs(work, outside, inside)
        with _running(folder / "root", watched):
            pairs = _pairs(work, outside, inside)
    peer = Peer(
        version=work.version,
        without=summarize(pairs["outside"]),
        under=summarize(pairs["inside"]),
        ratio=_ratio(work, pairs),
        control_ratio=_ratio(work, control),
    )
    sys.stdout.buffer.write(msgspec.json.encode(peer))


def _mount(folder: Path, program: Path) -> tuple[Path, Path]:
    """Our mounts, and the two copies of the program: on a tmpfs, and on a ramfs."""
    folder.mkdir()
    _run("mount", "-t", "tmpfs", "egs-bench", str(folder))
    for name in _OVERLAID:
        upper, work = folder / "upper" / name, folder / "work" / name
        upper.mkdir(parents=True)
        work.mkdir(parents=True)
        options = f"lowerdir=/{name},upperdir={upper},workdir={work}"
        _run("mount", "-t", "overlay", "egs-bench", "-o", options, f"/{name}")
    ramfs = folder / "watched"
    ramfs.mkdir()
    _run("mount", "-t", "ramfs", "egs-bench", str(ramfs))
    mounted = Path("/proc/self/mounts").read_text().splitlines()
    others = [line for line in mounted if line.split()[2] == "ramfs" and line.split()[1] != str(ramfs)]
    assert not others, "there is another ramfs: it would be watched too"
    return Path(shutil.copy(program, folder)), Path(shutil.copy(program, ramfs))


@contextlib.contextmanager
def _running(root: Path, trusted: Path) -> Iterator[None]:
    """It enforces on the watched mount."""
    digest = _run("sha256sum", str(trusted)).split()[0]
    for folder in ("/etc/fapolicyd", "/var/lib/fapolicyd", "/run/fapolicyd"):
        Path(folder).mkdir(exist_ok=True)
    etc = Path("/etc/fapolicyd")
    (etc / "fapolicyd.conf").write_text(_CONFIGURATION)
    (etc / "fapolicyd.trust").write_text(f"{trusted} {trusted.stat().st_size} {digest}\n")
    (etc / "fapolicyd.rules").write_text(_RULES)
    (etc / "compiled.rules").write_text(_RULES)
    libraries = str(next((root / "usr/lib").glob("*/liblmdb.so.0")).parent)
    process = subprocess.Popen(
        [str(root / "usr/sbin/fapolicyd"), "--debug-deny"],
        env=os.environ | {"LD_LIBRARY_PATH": libraries},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert any(_LISTENING in line for line in process.stderr), "fapolicyd did not start"
    _prove_that_it_denies(trusted)
    yield
    process.terminate()
    process.communicate()


def _prove_that_it_denies(trusted: Path) -> None:
    untrusted = Path(shutil.copy("/bin/true", trusted.parent / "untrusted"))
    try:
        subprocess.run([str(untrusted)], check=True)
    except PermissionError:
        return
    raise AssertionError("fapolicyd does not enforce")


def _pairs(work: Work, outside: Timer, inside: Timer) -> dict[str, list[int]]:
    timers = {"outside": outside, "inside": inside}
    times: dict[str, list[int]] = {name: [] for name in timers}
    for timer in timers.values():
        timer.measure(work.block)
    for number in range(work.rounds):
        for name in rotated(tuple(timers), number):
            times[name] += timers[name].measure(work.block)
    return times


def _ratio(work: Work, times: dict[str, list[int]]) -> Ratio:
    def medians(values: list[int]) -> list[float]:
        return [median(values[i : i + work.block]) for i in range(0, len(values), work.block)]

    return compare(medians(times["outside"]), medians(times["inside"]))


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    _main()
