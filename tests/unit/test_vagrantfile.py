"""The Vagrantfile, as Debian's vagrant reads it, and the script that it provisions its machines with."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[2]
PROVISION: Final = REPOSITORY / "scripts/provision"
VAGRANTFILE: Final = (REPOSITORY / "Vagrantfile").read_text()


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | environment,
        timeout=120,
    )


def test_vagrant_takes_it(tmp_path: Path) -> None:
    done = run("vagrant", "validate", "--ignore-provider", VAGRANT_HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "validated successfully" in done.stdout


def test_vagrant_would_say_if_it_were_wrong(tmp_path: Path) -> None:
    broken = tmp_path / "Vagrantfile"
    broken.write_text(VAGRANTFILE.replace("config.vm.box =", "config.vm.bax ="))
    done = run(
        "vagrant", "validate", "--ignore-provider", VAGRANT_HOME=str(tmp_path), VAGRANT_CWD=str(tmp_path)
    )
    assert done.returncode != 0


def test_both_hypervisors_are_provided_for() -> None:
    assert set(re.findall(r'config.vm.provider "(\w+)"', VAGRANTFILE)) == {"libvirt", "virtualbox"}


def test_its_commands_exist() -> None:
    for script in re.findall(r"scripts/[\w-]+", VAGRANTFILE):
        assert os.access(REPOSITORY / script, os.X_OK), script


def test_the_kernel_gets_its_parameters_once(tmp_path: Path) -> None:
    for _ in range(2):
        done = run(str(PROVISION), "boot", EGS_TREE=str(tmp_path))
        assert (done.returncode, done.stderr) == (0, "")
    settings = (tmp_path / "etc/default/grub.d/egs.cfg").read_text()
    shell = f'GRUB_CMDLINE_LINUX="quiet"; . {tmp_path}/etc/default/grub.d/egs.cfg; echo "$GRUB_CMDLINE_LINUX"'
    parameters = run("sh", "-c", shell).stdout.split()
    assert settings.count("lsm=") == 1
    assert parameters[0] == "quiet"
    assert parameters[1].startswith("lsm=")
    assert "bpf" in parameters[1].removeprefix("lsm=").split(",")
    assert parameters[2:] == ["lockdown=integrity"]


def test_wrong_usage_is_told_how_to() -> None:
    done = run(str(PROVISION), "now")
    assert (done.returncode, done.stdout) == (2, "")
    assert "scripts/provision boot [SUITE]" in done.stderr
