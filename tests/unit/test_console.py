"""`egs console serve` as another user than root: metrics; and Debian's real node exporter on the same file."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from prometheus_client.parser import text_string_to_metric_families

from egs_kernel.console.metrics import answer
from egs_kernel.errors import UsageError
from egs_kernel.metrics import MetricsSnapshot, exposition, write_textfile
from egs_kernel.model import GrantKind, Mode, Posture, Reason, Tier, Verdict
from egs_kernel.paths import Paths
from egs_kernel.web import MAX_CLIENTS, REQUEST_SECONDS, Address
from tests.unit.consoles import NOBODY, SERVE, ask, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

NODE_EXPORTER: Final = "prometheus-node-exporter"


def snapshot(taken: float) -> MetricsSnapshot:
    return MetricsSnapshot(
        time=taken,
        daemon_started=taken - 60,
        tier=Tier.TRACEPOINT,
        decisions={(Verdict.KILL, Reason.NO_GRANT, True): 7},
        grants={GrantKind.STANDING: 3},
        heartbeat_age=0.5,
        scopes={"agents": Mode.ENFORCE},
        governed_tasks={"agents": 2},
        record_bytes=1,
        record_entries=1,
        posture=Posture(
            kernel="6.1",
            boot_id="b",
            lockdown="none",
            tier=Tier.TRACEPOINT,
            gate=(),
            policy_digest="ab" * 32,
            clock_synchronized=True,
        ),
    )


@pytest.fixture
def root() -> Iterator[Path]:
    """An instance's folder that every user can read, as /run/egs is."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "run/egs").mkdir(parents=True)
        yield folder


def publish(root: Path, taken: float | None = None) -> bytes:
    content = snapshot(time.time() if taken is None else taken)
    paths = Paths.under(str(root))
    write_textfile(paths.metrics.parent, content, paths.metrics.name)
    return exposition(content)


def raw(address: tuple[str, int], request: bytes) -> bytes:
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(request)
        answered = b""
        while data := connection.recv(65536):
            answered += data
        return answered


def test_it_serves_what_the_daemon_wrote(root: Path) -> None:
    content = publish(root)
    with serving(root) as address:
        status, headers, body = ask(address)
        assert (status, body) == (200, content)
        assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert list(text_string_to_metric_families(body.decode()))
        status, headers, body = ask(address, method="HEAD")
        assert (status, headers["Content-Length"], body) == (200, str(len(content)), b"")
        newer = publish(root)
        assert ask(address)[2] == newer


def test_it_serves_on_the_other_loopback_too(root: Path) -> None:
    publish(root)
    with serving(root, "--listen", "[::1]:0") as address:
        assert address[0] == "::1"
        assert ask(address)[0] == 200


def test_the_address_is_the_configured_one(root: Path) -> None:
    publish(root)
    (root / "etc/egs").mkdir(parents=True)
    (root / "etc/egs/egs.toml").write_text('[console]\nlisten = "127.0.0.3:0"\n')
    with serving(root, "--stale-after", "1m") as address:
        assert address[0] == "127.0.0.3"
        assert ask(address)[0] == 200


def test_what_is_old_or_missing_is_not_served(root: Path) -> None:
    with serving(root, "--listen", "127.0.0.1:0", "--stale-after", "20s") as address:
        status, _, body = ask(address)
        assert status == 503
        assert b"Is egsd running?" in body
        publish(root, time.time() - 21)
        status, _, body = ask(address)
        assert status == 503
        assert b"21 s old" in body
        assert b"egs_" not in body
        publish(root)
        assert ask(address)[0] == 200


def test_old_is_what_the_clock_says(root: Path) -> None:
    file = Paths.under(str(root)).metrics
    publish(root, 1000)
    status = {now: answer(file, 30, lambda now=now: now).status_code for now in (969, 970, 1000, 1030, 1031)}  # type: ignore[misc] # a default argument
    assert status == {969: 503, 970: 200, 1000: 200, 1030: 200, 1031: 503}


@pytest.mark.parametrize(
    "content",
    [b"", b"egs_snapshot_timestamp_seconds soon\n", b"egs_snapshot_timestamp_seconds NaN\n", b"\xff" * 99],
)
def test_a_file_without_a_time_is_not_served(root: Path, content: bytes) -> None:
    file = Paths.under(str(root)).metrics
    file.write_bytes(content)
    assert answer(file, 30, time.time).status_code == 503


def test_a_file_that_others_can_write_is_not_served(root: Path) -> None:
    publish(root)
    file = Paths.under(str(root)).metrics
    file.chmod(0o666)
    found = answer(file, 30, time.time)
    assert found.status_code == 503
    assert b"egs_" not in found.body


def test_other_requests_get_an_answer_and_do_no_harm(root: Path) -> None:
    content = publish(root)
    with serving(root) as address:
        assert ask(address, "/")[0] == 404
        assert ask(address, "/metrics/../../etc/passwd")[0] == 404
        assert ask(address, "/metrics?format=json")[2] == content
        assert ask(address, method="POST")[0] == 405
        assert ask(address, headers={"Host": "egs.example.com"})[0] == 403
        assert ask(address, headers={"Host": "localhost:9731"})[0] == 200
        tls = b"\x16\x03\x01\x02\x00\x01\x00\xfc\r\n\r\n"
        for garbage in (tls, b"\0" * 100 + b"\r\n\r\n", b"GET\r\n\r\n"):
            assert b" 200 " not in raw(address, garbage).partition(b"\n")[0]
        assert b" 404 " in raw(address, b"GET /" + b"a" * 10_000 + b" HTTP/1.0\r\n\r\n")
        assert ask(address)[2] == content


def test_clients_that_dawdle_are_dropped_and_cannot_crowd_out_others_for_long(root: Path) -> None:
    content = publish(root)
    with serving(root) as address, ExitStack() as stack:
        started = time.monotonic()
        idle = [
            stack.enter_context(socket.create_connection(address, timeout=20)) for _ in range(MAX_CLIENTS)
        ]
        for connection in idle:
            connection.sendall(b"GET /metr")
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            ask(address)  # one too many is closed at once
        assert time.monotonic() - started < REQUEST_SECONDS
        for connection in idle:
            assert connection.recv(100) == b""
        assert time.monotonic() - started < 3 * REQUEST_SECONDS
        assert ask(address)[2] == content


def refused(*arguments: str, prefix: tuple[str, ...] = (sys.executable, "-c", SERVE)) -> str:
    done = subprocess.run([*prefix, *arguments], check=False, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 2  # what is wrong, and what to do
    return done.stderr


def test_without_a_configuration_and_an_address_it_says_what_to_do(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "etc/egs").mkdir(parents=True)
    monkeypatch.setenv("EGS_ROOT", str(root))
    assert "egs.toml" in refused()
    assert "is no address" in refused("--listen", "")


@pytest.mark.parametrize("address", ["0.0.0.0:0", "192.0.2.1:9731", "[::]:0", "[2001:db8::1]:9731"])
def test_it_listens_on_loopback_only(address: str) -> None:
    assert "is not a loopback address" in refused("--listen", address)


@pytest.mark.parametrize(
    "address", ["", ":", "9731", "127.0.0.1", "localhost:9731", "127.0.0.1:x", "127.0.0.1:65536"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match=r"console\.listen"):
        Address.parse_loopback(address, "console.listen")


def test_a_taken_port_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot listen" in refused("--listen", f"127.0.0.1:{taken.getsockname()[1]}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be refused as root")
def test_root_is_refused() -> None:
    command = (
        sys.executable,
        "-c",
        "import sys; from egs_kernel.cli.main import run; sys.exit(run(sys.argv[1:]))",
    )
    message = refused("console", "serve", "--listen", "127.0.0.1:0", prefix=command)
    assert "does not run as root" in message
    assert "systemctl start egs-console" in message


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def node_exporter(folder: Path) -> Iterator[tuple[str, int]]:
    port = free_port()
    with subprocess.Popen(
        [
            NODE_EXPORTER,
            f"--web.listen-address=127.0.0.1:{port}",
            "--collector.disable-defaults",
            "--collector.textfile",
            f"--collector.textfile.directory={folder}",
        ],
        stderr=subprocess.PIPE,
        user=NOBODY if os.geteuid() == 0 else None,
        group=NOBODY if os.geteuid() == 0 else None,
        extra_groups=[] if os.geteuid() == 0 else None,
    ) as process:
        try:
            deadline = time.monotonic() + 20
            while True:
                assert process.poll() is None, process.communicate()[1]
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except ConnectionRefusedError:
                    assert time.monotonic() < deadline, "node exporter does not listen"
                    os.sched_yield()
            yield "127.0.0.1", port
        finally:
            process.terminate()
            process.communicate()


def test_the_real_node_exporter_takes_the_file(root: Path) -> None:
    if shutil.which(NODE_EXPORTER) is None:
        message = f"{NODE_EXPORTER} is not installed (scripts/setup --dev installs it)"
        if os.environ.get("EGS_REQUIRE_KERNEL") == "1":
            pytest.fail(message)
        pytest.skip(message)
    taken = snapshot(1_700_000_000)
    before = os.umask(0o077)
    try:
        write_textfile(root, taken)
    finally:
        os.umask(before)
    with node_exporter(root) as address:
        exported = [
            line
            for line in ask(address)[2].decode().splitlines()
            if line.startswith(("egs_", "node_textfile"))
        ]
        assert "node_textfile_scrape_error 0" in exported
        assert [line for line in exported if line.startswith("node_textfile_mtime_seconds")]
        ours = [line for line in exposition(taken).decode().splitlines() if not line.startswith("#")]
        assert len(ours) >= 15
        assert {comparable(line) for line in ours} <= {comparable(line) for line in exported}
        write_textfile(root, replace(taken, record_entries=4711))
        assert "egs_record_entries_total 4711" in ask(address)[2].decode()
        # The test can fail: what a strict reader rejects, the exporter reports.
        (root / "broken.prom").write_text("egs_record_entries_total{ 1\n")
        assert "node_textfile_scrape_error 1" in ask(address)[2].decode()


def comparable(line: str) -> tuple[str, tuple[str, ...], float]:
    """A sample without the order of its labels and the way its number is written."""
    series, _, value = line.rpartition(" ")
    name, _, labels = series.partition("{")
    return name, tuple(sorted(labels.rstrip("}").split(","))), float(value)
