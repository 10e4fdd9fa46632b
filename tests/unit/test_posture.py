"""The posture of a host, from real files below a folder, and from this host."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from egs_kernel import posture
from egs_kernel.config import Config
from egs_kernel.errors import HostLacks
from egs_kernel.model import Posture, Tier

PROGRAMS = {"exec": "00112233", "fork": "44556677"}
BOOT_ID = "8349e64c-99b5-4db6-a8f3-8dbcaf9544cd"


class Host:
    """The folders of a host."""

    def __init__(self, base: Path) -> None:
        self.proc = base / "proc"
        self.security = base / "security"
        random = self.proc / "sys/kernel/random"
        random.mkdir(parents=True)
        (random / "boot_id").write_text(f"{BOOT_ID}\n")
        (self.proc / "sys/kernel/osrelease").write_text("6.12.1\n")
        (self.proc / "sys/kernel/version").write_text("#1 SMP\n")
        self.security.mkdir()
        (self.security / "lockdown").write_text("none [integrity] confidentiality\n")

    def read(self, found: dict[str, str] | None = None, *, clock: bool = True) -> Posture:
        return posture.read_posture(
            tier=Tier.TRACEPOINT,
            gate_programs=PROGRAMS if found is None else found,
            expected_programs=PROGRAMS,
            policy_digest=posture.EMPTY_POLICY,
            proc=self.proc,
            securityfs=self.security,
            synchronized=lambda: clock,
        )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_sound_host(host: Host) -> None:
    assert host.read() == Posture(
        kernel="6.12.1 #1 SMP",
        boot_id=BOOT_ID,
        lockdown="integrity",
        tier=Tier.TRACEPOINT,
        gate=(("exec", "00112233"), ("fork", "44556677")),
        policy_digest=posture.EMPTY_POLICY,
        clock_synchronized=True,
        problems=(),
    )


def test_a_clock_that_runs_free_is_reported(host: Host) -> None:
    found = host.read(clock=False)
    assert not found.clock_synchronized
    assert found.problems == ()


def test_a_clock_that_cannot_be_asked_is_a_problem(host: Host) -> None:
    def fail() -> bool:
        raise PermissionError(1, "Operation not permitted")

    found = posture.read_posture(
        tier=Tier.LSM,
        gate_programs=PROGRAMS,
        expected_programs=PROGRAMS,
        policy_digest="",
        proc=host.proc,
        securityfs=host.security,
        synchronized=fail,
    )
    assert not found.clock_synchronized
    assert "clock" in found.problems[0]


def test_lockdown_is_unavailable_without_securityfs(host: Host) -> None:
    shutil.rmtree(host.security)
    found = host.read()
    assert found.lockdown == posture.UNAVAILABLE
    assert found.problems == ()


@pytest.mark.parametrize("content", ["none integrity", "[none] [integrity]", ""])
def test_a_lockdown_that_makes_no_sense_is_a_problem(host: Host, content: str) -> None:
    (host.security / "lockdown").write_text(content)
    found = host.read()
    assert found.lockdown == posture.UNAVAILABLE
    assert len(found.problems) == 1


def test_an_unknown_boot_is_a_problem(host: Host) -> None:
    (host.proc / "sys/kernel/random/boot_id").unlink()
    assert "boot_id" in host.read().problems[0]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"exec": "00112233"}, "fork is not pinned"),
        (PROGRAMS | {"exit": "9"}, "exit was not loaded by us"),
        (PROGRAMS | {"exec": "ffffffff"}, "exec has tag ffffffff, loaded was 00112233"),
        ({}, "exec is not pinned"),
    ],
)
def test_gate_programs_that_are_not_those_that_were_loaded(
    host: Host, found: dict[str, str], words: str
) -> None:
    assert any(words in problem for problem in host.read(found).problems)


def test_a_gate_of_which_nothing_is_known_is_a_problem() -> None:
    assert posture.compare_programs({}, {})
    assert posture.compare_programs(PROGRAMS, {})
    assert posture.compare_programs(PROGRAMS, PROGRAMS) == []


def test_this_host() -> None:
    found = posture.read_posture(
        tier=Tier.TRACEPOINT, gate_programs=PROGRAMS, expected_programs=PROGRAMS, policy_digest=""
    )
    assert found.problems == ()
    assert found.kernel == f"{os.uname().release} {os.uname().version}"
    assert found.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_clock_is_asked_in_the_kernels_words(tmp_path: Path) -> None:
    """The same question in C gives the same answer, and its structure fits into ours."""
    (tmp_path / "ask.c").write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <sys/timex.h>\n"
        "int main(void) { struct timex t = {0}; int state = adjtimex(&t);\n"
        'printf("%zu %zu %d\\n", sizeof t, offsetof(struct timex, status),'
        " state != TIME_ERROR && !(t.status & STA_UNSYNC)); return 0; }\n"
    )
    subprocess.run(["cc", "-o", tmp_path / "ask", tmp_path / "ask.c"], check=True)
    answer = subprocess.run([tmp_path / "ask"], capture_output=True, text=True, check=True).stdout
    size, offset, synchronized = map(int, answer.split())
    assert posture._Timex.status.offset == offset
    assert ctypes.sizeof(posture._Timex) >= size
    assert posture.clock_synchronized() == bool(synchronized)


# --- host id -------------------------------------------------------------------------------------


def test_a_configured_host_id_wins(tmp_path: Path) -> None:
    assert posture.host_id(Config(host_id="build-7"), tmp_path / "none") == "build-7"


def test_a_derived_host_id_is_stable_and_not_the_machine_id(tmp_path: Path) -> None:
    machine_id = tmp_path / "machine-id"
    machine_id.write_text("d75b3f44a0c74abab7b6afefb1d5b1c2\n")
    found = posture.host_id(Config(), machine_id)
    assert found == posture.host_id(Config(), machine_id)
    assert len(bytes.fromhex(found)) == 16
    assert "d75b3f44" not in found
    machine_id.write_text("d75b3f44a0c74abab7b6afefb1d5b1c3\n")
    assert posture.host_id(Config(), machine_id) != found


def test_a_machine_id_has_always_had_this_host_id(tmp_path: Path) -> None:
    (tmp_path / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    assert posture.host_id(Config(), tmp_path / "machine-id") == "ebcd0ef6667e45e0a15a9fa6fdfbfd72"


@pytest.mark.skipif(
    shutil.which("systemd-id128") is None or not Path("/etc/machine-id").exists(),
    reason="needs systemd-id128 and a machine id",
)
def test_systemd_derives_the_same() -> None:
    command = ["systemd-id128", "machine-id", f"--app-specific={posture._APPLICATION}"]
    expected = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert posture.host_id(Config()) == expected


@pytest.mark.parametrize("content", [None, "", "uninitialized\n", "abcd", "0" * 32, "\xff"])
def test_without_a_machine_id_there_is_no_id(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "machine-id").write_text(content)
    with pytest.raises(HostLacks) as caught:
        posture.host_id(Config(), tmp_path / "machine-id")
    assert "host_id" in caught.value.next_step
