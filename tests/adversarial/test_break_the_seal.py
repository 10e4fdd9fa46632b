"""T-22, O-14: root against a sealed gate, and what a seal leaves open (tier `lsm`).

tests/kernel/test_protect.py has each thing that is refused, one by one. Here are the ways around all of them: artifacts
that should not lift the seal, and programs that pretend to be the daemon while it is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from egs_kernel.audit.entries import ArtifactChange, Attempt, SealChange
from egs_kernel.gate import libbpf
from egs_kernel.gate.seal import seal_word
from tests.harness import BIN, PATIENCE
from tests.sealing import Sealed, sealable_host

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kernel, pytest.mark.lsm]

EVIL: Final = """#!{python}
from pathlib import Path
from egs_kernel.gate import libbpf
try:
    libbpf.open_pin(Path({pins!r}) / "seals")
    print("OPENED")
except OSError as error:
    print("refused", error.errno)
"""
TRACE_ME, GO_ON = 0, 7
BPF: Final = 321
LIBC: Final = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sealed]:
    with sealable_host(tmp_path_factory.mktemp("seal")) as made:
        yield made


@pytest.fixture
def sealed(host: Sealed) -> Sealed:
    host.seal()
    return host


def is_protected(host: Sealed) -> bool:
    """By trying. What is tried does no harm."""
    try:
        os.kill(host.pid, signal.SIGCONT)
    except PermissionError:
        return True
    return False


# ---- artifacts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "fields", "reason"),
    [
        (("stranger",), {}, "key_untrusted"),
        (("issuing",), {}, "key_role_mismatch"),
        (("keeper",), {"host": "another-host"}, "host_mismatch"),
        (("keeper",), {"start": -7200, "end": -3600}, "expired"),
        (("keeper",), {"start": 3600, "end": 7200}, "not_yet_valid"),
    ],
)
def test_what_lifts_no_seal(
    sealed: Sealed, keys: tuple[str, ...], fields: dict[str, Any], reason: str
) -> None:
    done = sealed.unseal(sealed.artifact(*keys, **fields))
    assert done.returncode == 1
    assert f"[{reason}]" in done.stderr
    assert is_protected(sealed)


def test_neither_does_an_execution_authorization_nor_a_changed_one(sealed: Sealed) -> None:
    program = sealed.running.copy("/bin/true", "true")
    assert "[artifact_unknown_version]" in sealed.unseal(sealed.running.issue(program)).stderr
    artifact = sealed.artifact()
    artifact.write_bytes(artifact.read_bytes().replace(b'"sig":"', b'"sig":"00', 1))
    assert "[signature_invalid]" in sealed.unseal(artifact).stderr
    assert is_protected(sealed)


def test_a_maintenance_lifts_the_seal_once_and_is_in_the_record(sealed: Sealed) -> None:
    artifact = sealed.artifact(purpose="once")
    assert sealed.unseal(artifact).returncode == 0
    assert sealed.status["seal"] == "lifted"
    assert not is_protected(sealed)
    lifted = sealed.running.wait_for(SealChange, lambda entry: entry.purpose == "once")
    assert lifted.action == "lifted"
    sealed.running.wait_for(ArtifactChange, lambda entry: entry.artifact_id == lifted.artifact_id)
    sealed.seal()
    again = sealed.unseal(artifact)
    assert (again.returncode, "[revoked]" in again.stderr) == (1, True)
    assert is_protected(sealed)


def test_two_have_to_sign_where_two_are_needed(sealed: Sealed) -> None:
    sealed.lift()
    sealed.instance.egs("trust", "threshold", "maintenance", "2")
    sealed.instance.egs("reload")
    sealed.seal()
    try:
        assert "[threshold_not_met]" in sealed.unseal(sealed.artifact("keeper", purpose="one")).stderr
    finally:
        assert sealed.unseal(sealed.artifact("keeper", "other", purpose="two")).returncode == 0
        sealed.instance.egs("trust", "threshold", "maintenance", "1")
        sealed.instance.egs("reload")


def test_a_maintenance_that_is_over_ends(sealed: Sealed) -> None:
    sealed.lift(seconds=10 * PATIENCE)
    assert not is_protected(sealed)
    sealed.running.wait_for(SealChange, lambda entry: entry.cause == "the maintenance is over")
    assert sealed.status["seal"] == "sealed"
    assert is_protected(sealed)


def test_the_gate_ends_it_without_a_daemon(sealed: Sealed) -> None:
    sealed.lift(seconds=8 * PATIENCE)
    sealed.running.stop(signal.SIGKILL)
    pins = sealed.instance.paths.pins
    assert seal_word(pins) == "lifted"
    for _ in range(100):
        if seal_word(pins) == "sealed":
            break
        select.select([], [], [], 0.2 * PATIENCE)
    with pytest.raises(PermissionError):
        (pins / "seals").unlink()
    sealed.start()
    assert is_protected(sealed)


def test_unloading_and_loading(sealed: Sealed) -> None:
    for action in ("unload", "load"):
        done = sealed.instance.egs("gate", action, check=False)
        assert (done.returncode, "[sealed]" in done.stderr) == (1, True), done.stderr
    assert is_protected(sealed)


# ---- the daemon ---------------------------------------------------------------------------------


def test_a_signal_by_a_descriptor(sealed: Sealed) -> None:
    """F_SETOWN and F_SETSIG: the kernel sends it when the pipe can be read, in the name of whoever wrote."""
    reading, writing = os.pipe()
    try:
        fcntl.fcntl(reading, fcntl.F_SETOWN, sealed.pid)
        fcntl.fcntl(reading, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        os.write(writing, b"x")
    finally:
        os.close(reading)
        os.close(writing)
    assert sealed.status["pid"] == sealed.pid


def test_o14_a_crashed_daemon_is_down_until_it_is_started_and_then_is_the_daemon(sealed: Sealed) -> None:
    """`cgroup.kill` does not ask whom it kills."""
    before = sealed.pid
    sealed.crash()
    with pytest.raises(PermissionError):
        (sealed.instance.paths.pins / "seals").unlink()
    sealed.start()
    assert sealed.pid != before
    assert sealed.status["seal"] == "sealed"
    assert is_protected(sealed)


def test_a_service_manager_gives_each_daemon_a_mount_namespace(sealed: Sealed) -> None:
    """With mounts over the folders that are kept, of themselves. The kernel uses the number of the last one again."""
    mounts = 'mount --make-rslave / && mount --bind "$1" "$1" && shift && exec "$@"'
    sandbox = ("unshare", "--mount", "sh", "-ec", mounts, "sh", str(sealed.instance.paths.config_dir))
    try:
        for _ in range(3):
            sealed.crash()
            sealed.start(*sandbox)
            assert sealed.status["seal"] == "sealed"
            assert is_protected(sealed)
    finally:
        sealed.crash()
        sealed.start()


def in_a_namespace(sealed: Sealed) -> subprocess.Popen[str]:
    """The daemon's name leads to another script there."""
    evil = sealed.running.folder / "evil"
    evil.write_text(EVIL.format(python=BIN / "python", pins=str(sealed.instance.paths.pins)))
    evil.chmod(0o755)
    script = 'mount --make-rprivate / && mount --bind "$1" "$2" && shift 2 && exec "$@"'
    return sealed.impostor("unshare", "--mount", "sh", "-ec", script, "sh", str(evil), str(BIN / "egsd"))


def with_other_arguments(sealed: Sealed) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", EVIL.format(python="", pins=str(sealed.instance.paths.pins))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def with_code_in_the_environment(sealed: Sealed) -> subprocess.Popen[str]:
    return sealed.impostor(PYTHONPATH=str(sealed.running.folder))


def with_compiled_code_elsewhere(sealed: Sealed) -> subprocess.Popen[str]:
    """A variable that the gate does not know; the interpreter takes code from a folder that is not kept."""
    cache = sealed.running.folder / "cache" / str(Path(sys.base_prefix) / "lib/python3.11").lstrip("/")
    cache.mkdir(parents=True, exist_ok=True)
    compiled = Path(os.__file__).parent / "__pycache__/os.cpython-311.pyc"
    (cache / "os.cpython-311.pyc").write_bytes(compiled.read_bytes())
    return sealed.impostor(PYTHONPYCACHEPREFIX=str(sealed.running.folder / "cache"))


def traced(sealed: Sealed) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [str(BIN / "egsd"), "--foreground"],
        env=sealed.instance.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: LIBC.ptrace(TRACE_ME, 0, None, None),
    )
    os.waitpid(process.pid, 0)
    LIBC.ptrace(ctypes.c_long(GO_ON), ctypes.c_long(process.pid), None, None)
    return process


def filtered(sealed: Sealed) -> subprocess.Popen[str]:
    """A filter could answer for the kernel."""
    return sealed.impostor(
        "python3",
        "-c",
        "import ctypes, os, struct, sys\n"
        "code = ctypes.create_string_buffer(struct.pack('<HBBI', 6, 0, 0, 0x7fff0000))\n"
        "program = ctypes.create_string_buffer(struct.pack('<HxxxxxxQ', 1, ctypes.addressof(code)))\n"
        "libc = ctypes.CDLL(None)\n"
        "assert libc.prctl(22, 2, ctypes.c_ulong(ctypes.addressof(program)), 0, 0) == 0\n"
        "os.execv(sys.argv[1], sys.argv[1:])",
    )


@pytest.mark.parametrize(
    "pretend",
    [
        in_a_namespace,
        with_other_arguments,
        with_code_in_the_environment,
        with_compiled_code_elsewhere,
        traced,
        filtered,
    ],
)
def test_who_is_not_the_daemon_does_not_become_it(sealed: Sealed, pretend: Any) -> None:
    sealed.crash()
    try:
        process = pretend(sealed)
        said, _ = process.communicate(timeout=60 * PATIENCE)
    finally:
        sealed.start()
    assert "OPENED" not in said
    assert "refused 1" in said or "[sealed]" in said, said
    assert is_protected(sealed)


def test_nobody_is_the_daemon_while_there_is_one(sealed: Sealed) -> None:
    process = sealed.impostor()
    said, _ = process.communicate(timeout=60 * PATIENCE)
    assert "[sealed]" in said
    assert process.returncode == 1
    assert is_protected(sealed)


# ---- others --------------------------------------------------------------------------------------


def test_what_was_tried_is_in_the_record_and_does_not_fill_it(sealed: Sealed) -> None:
    marker = sealed.instance.paths.state_dir / f"marker-{os.getpid()}"
    before = len(sealed.running.entries(Attempt))
    for _ in range(500):
        with contextlib.suppress(PermissionError):
            marker.touch()
    entry = sealed.running.wait_for(Attempt, lambda entry: entry.event.name == marker.name)
    assert (entry.event.what, entry.event.pid, entry.event.uid) == ("create", os.getpid(), 0)
    assert len(sealed.running.entries(Attempt)) - before < 500
    assert "attempt_event" in sealed.status["details"]["failures"]


def test_everybody_else_goes_on(sealed: Sealed) -> None:
    """Their BPF, their mounts, looking at the daemon, and what goes through it."""
    attributes = struct.pack("<IIIII", 2, 4, 8, 1, 0)  # BPF_MAP_TYPE_ARRAY, key, value, entries, flags
    LIBC.syscall.restype = ctypes.c_long
    table = int(LIBC.syscall(BPF, 0, ctypes.create_string_buffer(attributes, 128), 128))
    assert table >= 0, os.strerror(ctypes.get_errno())
    pin = Path("/sys/fs/bpf/egs-test-somebody-else")
    try:
        libbpf.pin(table, pin)
        other = libbpf.open_pin(pin)
        theirs = libbpf.Map(other, ctypes.c_uint32, ctypes.c_uint64)
        theirs.put(ctypes.c_uint32(0), ctypes.c_uint64(7))
        assert theirs.get(ctypes.c_uint32(0)).value == 7  # type: ignore[union-attr]  # it was put there
        os.close(other)
    finally:
        pin.unlink()
        os.close(table)
    assert (
        "egsd"
        in subprocess.run(
            ["ps", "-o", "args=", "-p", str(sealed.pid)], check=True, capture_output=True, text=True
        ).stdout
    )
    script = 'mount --make-rprivate / && mount -t tmpfs none "$1" && ! test -e "$1/egs.toml"'
    folder = str(sealed.instance.paths.config_dir)
    subprocess.run(["unshare", "--mount", "sh", "-ec", script, "sh", folder], check=True)
    assert sealed.instance.paths.config.exists()
    program = sealed.running.copy("/bin/true", "other")
    artifact = sealed.running.issue(program, name="added.json")
    sealed.instance.egs("artifacts", "add", str(artifact))
    assert sealed.running.inside(str(program)) == 0
    assert is_protected(sealed)


def test_a_write_to_a_measured_file_is_refused(sealed: Sealed) -> None:
    program = sealed.running.copy("/bin/true", "measured")
    sealed.running.add(sealed.running.issue(program, name="measured.json"))
    with pytest.raises(OSError, match="not permitted") as refused:
        program.open("r+b")
    assert refused.value.errno == errno.EPERM
    sealed.lift()
    program.open("r+b").close()
