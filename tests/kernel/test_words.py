"""Each word of `resources` and `process`, and the rules for folder and environment: a real program, with and without."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.constraining import Acts, compile_acts

if TYPE_CHECKING:
    from pathlib import Path

    from tests.running import Running

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]

EPERM, EMFILE, ENOMEM = 1, 24, 12
MIB = 2**20


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_acts(tmp_path_factory.mktemp("acts"))


@pytest.fixture
def acts(running: Running, binary: Path) -> Acts:
    return Acts(running, binary)


def shown(output: str) -> dict[str, str]:
    return dict(line.replace(":", "").split() for line in output.splitlines())


def test_open_files(acts: Acts) -> None:
    assert acts.output("", "files", "40") == "done\n"
    assert acts.output("[resources]\nopenFiles = 32\n", "files", "40") == f"errno {EMFILE}\n"
    # It may have been root's: the limit stays, because CAP_SYS_RESOURCE went with it.
    assert acts.output("[resources]\nopenFiles = 32\n", "raises") == f"errno {EPERM}\n"


def test_address_space(acts: Acts) -> None:
    assert acts.output("", "memory", "200") == "done\n"
    assert acts.output(f"[resources]\naddressSpace = {64 * MIB}\n", "memory", "200") == f"errno {ENOMEM}\n"


def test_file_size(acts: Acts, tmp_path: Path) -> None:
    target = str(tmp_path / "big")
    assert acts.output("", "writes", str(MIB), target) == "done\n"
    stopped = acts.run("[resources]\nfileSize = 65536\n", "writes", str(MIB), target)
    assert stopped.returncode == -signal.SIGXFSZ
    assert (tmp_path / "big").stat().st_size == 65536


def test_cpu_seconds(acts: Acts) -> None:
    stopped = acts.run("[resources]\ncpuSeconds = 1\ncoreSize = 0\n", "burns")
    assert stopped.returncode == -signal.SIGKILL


def test_capabilities_and_umask(acts: Acts) -> None:
    free = shown(acts.output(""))
    assert (free["no_new_privs"], int(free["CapPrm"], 16) != 0) == ("0", True)
    bound = shown(acts.output('[process]\ncapabilities = ["chown"]\numask = "0077"\n'))
    assert (bound["umask"], bound["no_new_privs"]) == ("0077", "1")
    assert {int(bound[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {1}
    none = shown(acts.output('[process]\ncapabilities = "none"\n'))
    assert int(none["CapPrm"], 16) == 0
    assert shown(acts.output('[process]\nnewPrivileges = "refused"\n'))["no_new_privs"] == "1"


def test_a_mount_takes_a_capability(acts: Acts) -> None:
    assert acts.output("", "mounts") == "done\n"
    assert acts.output('[process]\ncapabilities = ["chown"]\n', "mounts") == f"errno {EPERM}\n"
