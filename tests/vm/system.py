"""A disk with egs-kernel installed by the commands of docs/systemd.md, for the cases that boot a whole Debian."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Final

from tests.vm.host import CACHE, REPOSITORY, cached, digest, file_system, say, workshop
from tests.vm.image import DISK, DISK_SIZE, copy_checkout, debian, inside, setup_list, unpack, wheels

LARGE: Final = 256 << 20
"""Bytes of the program that is enabled at boot: egsd takes seconds to hash it, and must be ready only then."""

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
Description=Looks at the units (%i)
After=egs-gate.service egsd.service egs-console.service vm-enabled.service
[Service]
Type=exec
WorkingDirectory=/opt/vm
ExecStart=/usr/bin/python3 -m tests.vm.guest.%i
ExecStopPost=/bin/sh -c '[ -e /run/vm-goes-on ] || systemctl --no-block poweroff'
"""
"""A machine is told on the kernel's command line which one to start: systemd.wants=vm-observer@CASE.service."""

EMULATED: Final = """\
[Service]
TimeoutStartSec=900
"""
"""A drop-in of egs-gate.service: to compile and prove the gate takes seconds on a processor, and minutes by emulation on a crowded host."""

PREPARE: Final = """\
set -eu
useradd --create-home --shell /bin/bash alice
egs=/opt/egs/bin/egs
$egs keys generate --name issuer --out /root
$egs trust add /root/issuer.pub --role issuer --scope agents
$egs issue --key /root/issuer.key --scope agents --program /opt/agent/enabled --purpose boot --out /root/enabled.json
install -d -m 0755 /etc/egs/artifacts
install -m 0644 /root/enabled.json /etc/egs/artifacts/enabled.json
systemctl enable vm-enabled.service
"""


def system_disk(commit: str | None) -> Path:
    """The disk with a commit installed, or the working tree; never written to."""
    with workshop() as folder:
        copy_checkout(folder / "egs-kernel", commit)
        files = sorted(path for path in (folder / "egs-kernel").rglob("*") if path.is_file())
        base = debian()
        key = digest(
            base.name,
            *(part for file in files for part in (str(file.relative_to(folder)), file.read_bytes())),
        )

        def make(made: Path) -> None:
            say(f"making {CACHE}/system-{key} (half a minute)")
            with workshop() as tree:
                unpack(base, tree)
                (folder / "egs-kernel").rename(tree / "srv/egs-kernel")
                _install(tree)
                file_system(made / DISK, tree, DISK_SIZE)

        return cached(f"system-{key}", make) / DISK


def _install(tree: Path) -> None:
    """As the document says, with a configuration, agents, and the observers."""
    shutil.copytree(wheels("requirements.lock"), tree / "srv/wheels")
    (tree / "srv/egs-kernel/egs.toml").write_text(CONFIG)
    inside(tree, f"cd /srv/egs-kernel\n{documented_commands()}")
    shutil.rmtree(tree / "srv/wheels")

    agents = tree / "opt/agent"
    agents.mkdir()
    for name, program in PROGRAMS.items():
        shutil.copy(tree / "usr/bin" / program, agents / name)
    os.truncate(agents / "enabled", LARGE)
    units = tree / "etc/systemd/system"
    for name, (kind, command) in SERVICES.items():
        (units / f"vm-{name}.service").write_text(SERVICE.format(name=name, kind=kind, command=command))
    (units / "vm-observer@.service").write_text(OBSERVER)
    (units / "egs-gate.service.d").mkdir()
    (units / "egs-gate.service.d/emulated.conf").write_text(EMULATED)
    shutil.copytree(tree / "srv/egs-kernel/tests/vm/guest", tree / "opt/vm/tests/vm/guest")
    inside(tree, PREPARE)


def documented_commands() -> str:
    """The installation as docs/systemd.md has it; its packages are those of scripts/setup, and are there.

    `egs doctor` and `egs status` ask the running kernel and the daemon, so they are left to the guest, and so is
    the `--now` of `systemctl enable`.
    """
    text = (REPOSITORY / "docs/systemd.md").read_text()
    match = re.search(r"## Installing\n.*?```sh\n(.*?)```", text, re.DOTALL)
    if match is None:
        raise ValueError("docs/systemd.md has no commands under 'Installing'")
    lines = match[1].splitlines()
    packages = next(line for line in lines if line.startswith("apt-get install ")).split()[2:]
    if not set(packages) <= set(setup_list("runtime")):
        raise ValueError("docs/systemd.md installs packages that scripts/setup does not")
    kept = [line for line in lines if not re.fullmatch(r"apt-get .*|/opt/egs/bin/egs (doctor|status)", line)]
    script = "\n".join(kept).replace("systemctl enable --now ", "systemctl enable ")
    return f"set -eux\n{script}\n"
