"""The units of systemd/ under a real systemd: a Debian 12 (kernel 6.1, cgroup v2) in qemu, by emulation.

Installs a commit of this repository into an image by the commands of docs/systemd.md themselves, boots it, and has
guest_units.py look. Needs root, Python 3.11, qemu-system-x86, mmdebstrap and e2fsprogs, and at its first run the
network (the image's packages stay in ~/.cache/egs-kernel). Takes four minutes on two idle cores, the first time six.

    .venv/bin/python tests/vm/boot_units.py [--commit HEAD] [--seconds 420] [--verbose]

Exit codes: 0 everything was seen; 1 something was not; 3 this host lacks what it takes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
REPOSITORY: Final = HERE.parents[1]
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "egs-kernel"
TOOLS: Final = {"qemu-system-x86_64": "qemu-system-x86", "mmdebstrap": "mmdebstrap", "mkfs.ext4": "e2fsprogs"}
SYSTEM: Final = (
    "systemd",
    "systemd-sysv",
    "libpam-systemd",
    "udev",
    "dbus",
    "linux-image-amd64",
    "initramfs-tools",
)
IMAGE_SIZE: Final = "3G"
LARGE: Final = 256 << 20
"""Bytes of the program that is enabled at boot: egsd takes seconds to hash it, and must be ready only then."""
LACKS: Final = 3

CONFIG: Final = """\
daemon_grace = "10s"
host_id = "vm"

[[scope]]
name = "agents"
cgroup = "/egs.slice/egs-agents.slice"
"""

SERVICE: Final = """\
[Unit]
Description={name} agent
[Service]
Type={kind}
Slice=egs-agents.slice
ExecStart={command}
[Install]
WantedBy=multi-user.target
"""
SERVICES: Final = {
    "enabled": ("exec", "/opt/agent/enabled infinity"),
    "governed": ("oneshot", "/opt/agent/governed governed and running"),
    "other": ("oneshot", "/opt/agent/other must not be seen"),
}
PROGRAMS: Final = {"enabled": "sleep", "governed": "echo", "other": "echo", "launched": "cat"}

OBSERVER: Final = """\
[Unit]
Description=Looks at the units
After=egs-gate.service egsd.service egs-metrics.service vm-enabled.service
[Service]
Type=exec
ExecStart=/usr/bin/python3 /opt/guest_units.py /dev/ttyS1
ExecStopPost=/usr/bin/systemctl --no-block poweroff
[Install]
WantedBy=multi-user.target
"""

PREPARE: Final = """\
set -eu
useradd --create-home --shell /bin/bash alice
egs=/opt/egs/bin/egs
$egs keys generate --name issuer --out /root
$egs trust add /root/issuer.pub --role issuer --scope agents
$egs issue --key /root/issuer.key --scope agents --program /opt/agent/enabled --purpose boot --out /root/enabled.json
install -d -m 0755 /etc/egs/artifacts
install -m 0644 /root/enabled.json /etc/egs/artifacts/enabled.json
systemctl enable vm-enabled.service vm-observer.service
"""


class Lacking(Exception):
    """This host cannot run it."""


def need_tools() -> None:
    """Say what is missing.

    Raises:
        Lacking: something is.
    """
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        raise Lacking(f"needs {', '.join(missing)}: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        raise Lacking("needs root, to make a file system with files of root in it")
    if sys.version_info[:2] != (3, 11):
        raise Lacking("needs Python 3.11, Debian 12's own, to download what fits: use .venv/bin/python")


# -- the image -------------------------------------------------------------------------------------


def documented_commands() -> tuple[str, list[str]]:
    """The installation as docs/systemd.md has it: what runs in the image, and the packages.

    `egs doctor` and `egs status` ask the running kernel and the daemon, so they are left to the guest, and so is
    the `--now` of `systemctl enable`.
    """
    text = (REPOSITORY / "docs/systemd.md").read_text()
    match = re.search(r"## Installing\n.*?```sh\n(.*?)```", text, re.DOTALL)
    if match is None:
        raise ValueError("docs/systemd.md has no commands under 'Installing'")
    lines = match[1].splitlines()
    packages = next(line for line in lines if line.startswith("apt-get install ")).split()[2:]
    kept = [line for line in lines if not re.fullmatch(r"apt-get .*|/opt/egs/bin/egs (doctor|status)", line)]
    script = "\n".join(kept).replace("systemctl enable --now ", "systemctl enable ")
    return f"set -eux\n{script}\n", packages


def base_system(packages: list[str]) -> Path:
    """A Debian with what the document wants, as a tar file; made once."""
    wanted = ",".join(sorted({*SYSTEM, *packages}))
    tar = CACHE / f"bookworm-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}.tar"
    if not tar.exists():
        say(f"making {tar} (two minutes)")
        part = tar.with_suffix(".part.tar")
        command = ("mmdebstrap", "--quiet", "--variant=apt", f"--include={wanted}", "bookworm", str(part))
        must(*command, seconds=900)
        part.rename(tar)
    return tar


def wheelhouse() -> Path:
    """What pip needs without a network, by hash; downloaded once."""
    lock = REPOSITORY / "requirements.lock"
    folder = CACHE / f"wheels-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    if not folder.is_dir():
        say(f"downloading into {folder}")
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(part))
        must(*pip, "--require-hashes", "--requirement", str(lock), seconds=600)
        must(*pip, "setuptools", "wheel", "hatchling", seconds=600)
        part.rename(folder)
    return folder


def build_tree(tree: Path, commit: str) -> None:
    """The file system of the machine."""
    script, packages = documented_commands()
    must("tar", "--extract", "--file", str(base_system(packages)), "--directory", str(tree))
    shutil.copytree(wheelhouse(), tree / "srv/wheels")
    checkout = tree / "srv/egs-kernel"
    checkout.mkdir()
    archive = subprocess.run(
        ("git", "-C", REPOSITORY, "archive", commit), check=True, capture_output=True
    ).stdout
    subprocess.run(("tar", "--extract", "--directory", checkout), check=True, input=archive)
    (checkout / "egs.toml").write_text(CONFIG)
    inside(tree, f"cd /srv/egs-kernel\n{script}")
    shutil.rmtree(tree / "srv/wheels")

    agents = tree / "opt/agent"
    agents.mkdir()
    for name, program in PROGRAMS.items():
        shutil.copy(tree / "usr/bin" / program, agents / name)
    os.truncate(agents / "enabled", LARGE)
    units = tree / "etc/systemd/system"
    for name, (kind, command) in SERVICES.items():
        (units / f"vm-{name}.service").write_text(SERVICE.format(name=name, kind=kind, command=command))
    (units / "vm-observer.service").write_text(OBSERVER)
    shutil.copy(HERE / "guest_units.py", tree / "opt/guest_units.py")
    inside(tree, PREPARE)


def inside(tree: Path, script: str) -> None:
    """Run a shell script in the tree, with an environment of its own."""
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "/srv/wheels",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "SYSTEMD_OFFLINE": "1",
    }
    must("chroot", str(tree), "/bin/sh", "-c", script, environment=environment, seconds=300)


def must(*command: str, environment: dict[str, str] | None = None, seconds: float = 120) -> None:
    """Run a command that has to succeed.

    Raises:
        RuntimeError: with what it said.
    """
    done = subprocess.run(
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        timeout=seconds,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed ({done.returncode}):\n{done.stdout[-4000:]}")


# -- the machine -----------------------------------------------------------------------------------


def boot(folder: Path, tree: Path, seconds: int) -> Path:
    """Boot the tree until it powers off or the time is over; the file with what the guest said."""
    image, answers = folder / "image", folder / "answers"
    kernel, initrd = (next((tree / "boot").glob(f"{name}-*")) for name in ("vmlinuz", "initrd.img"))
    for file in (kernel, initrd):
        shutil.copy(file, folder / file.name)
    must("truncate", f"--size={IMAGE_SIZE}", str(image))
    must("mkfs.ext4", "-q", "-d", str(tree), str(image))
    shutil.rmtree(tree)
    command = [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "2048", "-smp", "2",
        "-nodefaults", "-display", "none", "-no-reboot", "-nic", "none",
        "-serial", f"file:{console_log()}", "-serial", f"file:{answers}",
        "-drive", f"file={image},format=raw,cache=unsafe",
        "-kernel", str(folder / kernel.name), "-initrd", str(folder / initrd.name),
        "-append", "root=/dev/sda rw console=ttyS0 lsm=lockdown,capability,yama,bpf",
    ]  # fmt: skip
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        machine.wait(seconds)
    except subprocess.TimeoutExpired:
        say(f"the machine did not power off within {seconds} s; its console: {console_log()}")
    finally:
        machine.kill()
        machine.wait()
    return answers


def console_log() -> Path:
    """What the kernel and systemd printed in the last run; kept."""
    return CACHE / "boot_units.console"


def report(answers: Path, *, verbose: bool) -> int:
    """Print what the guest saw; the exit code."""
    counts = {"pass": 0, "fail": 0, "end": 0}
    marks = {"pass": "\N{CHECK MARK}", "fail": "\N{BALLOT X}", "note": "\N{MIDDLE DOT}", "log": "|"}
    for line in answers.read_text(errors="replace").splitlines() if answers.exists() else ():
        kind, what, seen = (*line.split("\t"), "", "")[:3]
        counts[kind] = counts.get(kind, 0) + 1
        if kind not in marks or (kind == "log" and not verbose and not counts["fail"]):
            continue
        detail = ""
        if seen and (verbose or kind != "pass"):
            with contextlib.suppress(ValueError):  # a line that the serial port tore
                seen = json.loads(seen)
            detail = (
                "".join(f"\n      {part}" for part in seen.splitlines()) if "\n" in seen else f"  ({seen})"
            )
        say(f"  {marks[kind]} {what}{detail}")
    if not counts["end"]:
        say(f"the guest did not come to its end; its console: {console_log()}")
    say(f"{counts['pass']} of {counts['pass'] + counts['fail']} observations as they should be.")
    return 0 if counts["end"] and counts["pass"] and not counts["fail"] else 1


def say(line: str) -> None:
    """To the person who runs this."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@contextlib.contextmanager
def workshop() -> Iterator[Path]:
    """A folder on a disk with room; gone afterwards."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="boot-units-", dir=CACHE) as folder:
        yield Path(folder)


def main() -> int:
    """Build, boot, report."""
    parser = argparse.ArgumentParser(description="See the systemd units work in a virtual machine.")
    parser.add_argument("--commit", default="HEAD", help="what to install (default: HEAD)")
    parser.add_argument("--seconds", type=int, default=420, help="how long the machine may run")
    parser.add_argument("--verbose", action="store_true", help="also what was seen when all was well")
    options = parser.parse_args()
    try:
        need_tools()
    except Lacking as lacking:
        say(f"boot_units: not run: {lacking}")
        return LACKS
    with workshop() as folder:
        tree = folder / "tree"
        tree.mkdir()
        build_tree(tree, options.commit)
        return report(boot(folder, tree, options.seconds), verbose=options.verbose)


if __name__ == "__main__":
    sys.exit(main())
