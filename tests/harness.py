"""An instance of egs-kernel for one test: its own EGS_ROOT, pins, cgroup. Undone even when the test dies.

The gate of a test can only reach the cgroup that the test made. Whatever happens to the test process, a
reaper process notices that it is gone and undoes everything.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from egs_kernel.gate.cgroups import cgroup_id, cgroup_mount
from egs_kernel.gate.libbpf import Map
from egs_kernel.gate.pins import Gate
from egs_kernel.paths import Paths
from tests.reaper import clear_cgroup
from tests.refusals import TIER_SETTING

REPOSITORY: Final = Path(__file__).parents[1]
BIN: Final = Path(sys.executable).parent
PROGRAMS: Final = Path(__file__).parent / "programs"
PATIENCE: Final = float(os.environ.get("EGS_TEST_PATIENCE", "1"))
"""How much longer to wait for anything than on real hardware: scripts/test-vm runs the tests by emulation."""
COMMAND_SECONDS: Final = 60 * PATIENCE
OWN_MACHINE: Final = os.environ.get("EGS_TEST_OWN_MACHINE") == "1"
"""Whether the machine is the tests' own, as those of scripts/test-vm are: they may set its clock and load modules."""
_LONG: Final = "300s"
"""A grace that outlasts any test."""
_numbers = itertools.count()
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class Cgroup:
    """A cgroup made for one test."""

    path: str
    folder: Path

    @property
    def id(self) -> int:
        """The kernel's id of it."""
        return cgroup_id(self.folder)

    @property
    def procs(self) -> Path:
        """The file that moves processes in."""
        return self.folder / "cgroup.procs"

    def enter(self) -> None:
        """Move the calling process in: for `preexec_fn`."""
        self.procs.write_text("0\n")

    def child(self, name: str) -> Cgroup:
        """A new cgroup below this one."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        return Cgroup(f"{self.path}/{name}", folder)


@dataclass
class Instance:
    """One EGS_ROOT with a scope `test` on a cgroup of its own."""

    root: Path
    cgroup: Cgroup
    _reaper: subprocess.Popen[bytes] = field(repr=False)

    @classmethod
    def create(cls, root: Path, *, grace: str = "30s", mode: str = "enforce") -> Instance:
        """Make folders, cgroup and configuration; nothing is loaded yet."""
        name = f"egs-test-{os.getpid()}-{next(_numbers)}"
        cgroup = Cgroup(f"/{name}", cgroup_mount() / name)
        reaper = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("reaper.py")), str(root), str(cgroup.folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        cgroup.folder.mkdir()
        instance = cls(root, cgroup, reaper)
        for folder in (instance.paths.config_dir, instance.paths.run_dir, instance.paths.state_dir):
            folder.mkdir(parents=True, mode=0o755)
        instance.configure(grace=grace, mode=mode)
        return instance

    def configure(
        self,
        *,
        grace: str = "30s",
        mode: str = "enforce",
        more: str = "",
        scope: str = "",
        drift: str = "off",
    ) -> None:
        """Write egs.toml: one cgroup scope with what `scope` adds to it, and what `more` adds; no drift events unless asked."""
        self.paths.config.write_text(
            f'daemon_grace = "{grace}"\nhost_id = "test-host"\n{TIER_SETTING}{more}\n'
            f'[[scope]]\nname = "test"\ncgroup = "{self.cgroup.path}"\nmode = "{mode}"\n{scope}\n'
            f'[drift]\nevents = "{drift}"\n'
        )

    @property
    def paths(self) -> Paths:
        """Where the instance lives."""
        return Paths.under(str(self.root))

    @property
    def environment(self) -> dict[str, str]:
        """The environment that makes a command use this instance."""
        return os.environ | {"EGS_ROOT": str(self.root)}

    def egs(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the real `egs` command; `check`: it is to succeed."""
        done = subprocess.run(
            [str(BIN / "egs"), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
        )
        assert done.returncode == 0 or not check, (arguments, done.returncode, done.stderr)
        return done

    def egsd(self) -> subprocess.CompletedProcess[str]:
        """Run the real daemon where it is to end by itself."""
        return subprocess.run(
            [str(BIN / "egsd")],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
        )

    def load_gate(self) -> Gate:
        """Load the real gate with the real command; the daemon's door to it."""
        self.egs("gate", "load")
        return Gate.open(self.paths.pins)

    def clear_cgroup(self) -> None:
        """End what is left in the cgroup, and remove what is below it."""
        clear_cgroup(self.cgroup.folder)

    def reap_also(self, pid: int) -> None:
        """Have a process killed at the end, whatever happens."""
        assert self._reaper.stdin is not None
        self._reaper.stdin.write(f"{pid}\n".encode())
        self._reaper.stdin.flush()

    def close(self) -> None:
        """Undo everything."""
        assert self._reaper.stdin is not None
        self._reaper.stdin.close()
        assert self._reaper.wait(COMMAND_SECONDS) == 0, "the reaper failed: see its messages above"


@dataclass
class LoadedGate:
    """A gate that several tests use, one after the other, each as if it had just been loaded."""

    instance: Instance
    gate: Gate

    @classmethod
    def create(cls, root: Path) -> LoadedGate:
        """Load it."""
        instance = Instance.create(root, grace=_LONG)
        try:
            return cls(instance, instance.load_gate())
        except BaseException:
            instance.close()
            raise

    def renew(self) -> None:
        """Forget what the test before did: its processes, cgroups, scopes, grants, events and counts."""
        self.instance.clear_cgroup()
        configured = self.instance.paths.config.read_text()
        self.instance.configure(grace=_LONG)
        if configured != self.instance.paths.config.read_text():
            self.instance.egs("gate", "load")
        for standing in self.gate.standing():
            self.gate.withdraw(standing.grant_id)
        for pid in self.gate.armed():
            self.gate.disarm(pid)
        self.gate.collect()
        _empty(self.gate.subjects)
        _empty(self.gate.measured_files)
        self.gate.close()
        self.gate = Gate.open(self.instance.paths.pins)
        for key, task in self.gate._tasks.items():
            self.gate.ungovern(key.value, task.scope)
        assert self.gate.governed() == []
        self.gate.drain(lambda _event: None)
        self.gate.reset_counters()
        self.gate.beat()

    def close(self) -> None:
        """Unload it."""
        self.gate.close()
        self.instance.close()


def _empty(table: Map[K, V]) -> None:
    for key in table.keys():  # noqa: SIM118 - no dict
        table.delete(key)


def fork_and_be_the_child() -> None:
    """Go on in a child; the parent waits for it and ends as it does. For `preexec_fn`."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            os.kill(os.getpid(), os.WTERMSIG(status))
        os._exit(os.WEXITSTATUS(status))


def compile_program(name: str, folder: Path, *flags: str) -> Path:
    """Compile tests/programs/NAME.c."""
    binary = folder / name
    source = PROGRAMS / f"{name}.c"
    subprocess.run(["gcc", "-O1", "-static", *flags, "-o", str(binary), str(source)], check=True)
    return binary
