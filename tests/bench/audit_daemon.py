"""Debian's auditd beside the monitor: the same work is done twice, and each of them is told of it by the kernel once.

auditd's rules name the system calls that the monitor's drift events are of, and are for the login of that work alone, as the
monitor watches what is governed alone. Compared is the processor time of the two
processes. What the kernel does for them in whoever makes the calls, and in its own threads, is in neither figure.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from tests.running import SECONDS

if TYPE_CHECKING:
    from tests.running import Running

_CALLS: Final = (
    "execve,execveat,fork,vfork,clone,clone3,ptrace,process_vm_writev,setns,unshare,chroot,pivot_root,"
    "setuid,setgid,setreuid,setregid,setresuid,setresgid,capset,personality"
)
_RULES: Final = (
    ("-S", _CALLS),
    ("-S", "mmap,mprotect", "-F", "a2&4"),  # PROT_EXEC
)
_CONFIGURATION: Final = """\
log_file = {folder}/audit.log
plugin_dir = {folder}/plugins.d
flush = INCREMENTAL_ASYNC
freq = 50
space_left = 75
admin_space_left = 50
space_left_action = IGNORE
admin_space_left_action = IGNORE
"""
_SCRIPT: Final = "n=0; while [ $n -lt {count} ]; do /bin/true; n=$((n+1)); done"
_LOGIN: Final = 4242
_PAUSE: Final = 0.5


class Beside(msgspec.Struct, frozen=True):
    """One comparison.

    Attributes:
        execs: programs that were forked and executed, under each of the two.
        monitor_us: processor time of the monitor for each, microseconds.
        auditd_us: the same of auditd.
        records: that auditd wrote for each.
        auditd_bytes: resident.
    """

    execs: int
    monitor_us: float
    auditd_us: float
    records: float
    auditd_bytes: int

    @property
    def ratio(self) -> float:
        """How many times auditd's processor time the monitor takes."""
        return self.monitor_us / self.auditd_us


def missing() -> str:
    """Why auditd cannot be measured here; "": it can."""
    if shutil.which("auditd", path="/usr/sbin:/sbin") is None:
        return "not installed on this machine"
    status = _control("-s", check=False)
    if status is None:
        return "this kernel has no audit, or does not let us"
    return "" if "\npid 0\n" in status else "another one runs on this machine"


def compare(
    running: Running, folder: Path, monitor: int, stop_monitor: Callable[[], object], execs: int
) -> Beside:
    """The monitor first; it is stopped, and auditd takes its place.

    Args:
        running: where the work is done.
        folder: for auditd's configuration and log.
        monitor: its process id.
        stop_monitor: ends it.
        execs: how many.
    """
    script = [shutil.which("dash") or "/bin/sh", "-c", _SCRIPT.format(count=execs)]
    script[0] = str(Path(script[0]).resolve())
    words = [part for word in script for part in ("--argv", word)]
    running.add(running.issue(Path(script[0]), *words, name="loops.json"))
    running.add(running.issue(Path("/bin/true").resolve(), name="true.json"))
    by_monitor = _cost(monitor, lambda: _work(running, script))
    stop_monitor()
    with _auditd(folder) as pid:
        by_auditd = _cost(pid, lambda: _work(running, script))
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    records = (folder / "audit.log").read_text(errors="replace").count("\n")
    return Beside(
        execs=execs,
        monitor_us=by_monitor / execs / 1000,
        auditd_us=by_auditd / execs / 1000,
        records=records / execs,
        auditd_bytes=resident,
    )


def _work(running: Running, script: list[str]) -> None:
    def begin() -> None:
        Path("/proc/self/loginuid").write_text(str(_LOGIN))
        running.instance.cgroup.enter()

    subprocess.run(script, preexec_fn=begin, check=True)


def _cost(pid: int, work: Callable[[], None]) -> int:
    """Nanoseconds of processor time that a process takes while work is done, and until it has come to rest."""
    before = _processor(pid)
    work()
    last = -1
    while (now := _processor(pid)) - last > 1_000_000:
        last = now
        time.sleep(_PAUSE)
    return now - before


def _processor(pid: int) -> int:
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads)


@contextlib.contextmanager
def _auditd(folder: Path) -> Iterator[int]:
    """Run auditd with these rules, and leave no trace of it; its process id."""
    folder.mkdir(mode=0o750)
    (folder / "plugins.d").mkdir(mode=0o750)
    (folder / "auditd.conf").write_text(_CONFIGURATION.format(folder=folder))
    (folder / "auditd.conf").chmod(0o640)
    process = subprocess.Popen(
        ["/usr/sbin/auditd", "-n", "-c", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + SECONDS
        while f"\npid {process.pid}\n" not in (_control("-s") or ""):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"auditd did not start (exit code {process.poll()})")
            time.sleep(_PAUSE)
        for rule in _RULES:
            _control("-a", "always,exit", "-F", "arch=b64", "-F", f"auid={_LOGIN}", *rule)
        yield process.pid
    finally:
        _control("-D")
        _control("-e", "0")
        process.terminate()
        process.wait(SECONDS)


def _control(*arguments: str, check: bool = True) -> str | None:
    done = subprocess.run(["/usr/sbin/auditctl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0 and check:
        raise RuntimeError(f"auditctl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout if done.returncode == 0 else None
