"""A console of another user than root, for tests: started, asked over HTTP, ended."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY: Final = 65534
READERS: Final = 61_312
"""A group that may read the record, and is of this test alone."""

# Everything is imported while it may still be read: a checkout can lie where only root may go.
SERVE: Final = """
import encodings.idna, os, sys
import anyio._backends._asyncio, egs_kernel.cli.console, egs_kernel.console.app, uvicorn.lifespan.off
import egs_kernel.console.log, egs_kernel.console.metrics
from egs_kernel.cli.main import run
groups = [int(number) for number in os.environ.pop("CONSOLE_GROUPS", "").split()]
if os.geteuid() == 0:
    os.setgroups(groups); os.setgid(65534); os.setuid(65534)
sys.exit(run(["console", "serve", *sys.argv[1:]]))
"""


@contextmanager
def serving(root: Path, *arguments: str, groups: tuple[int, ...] = ()) -> Iterator[tuple[str, int]]:
    """A server of another user than root, in these groups; its host and port."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, *(arguments or ("--listen", "127.0.0.1:0"))],
        env={**os.environ, "EGS_ROOT": str(root), "CONSOLE_GROUPS": " ".join(map(str, groups))},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if os.geteuid() == 0:
                owner = Path(f"/proc/{process.pid}/status").read_text().split("Uid:")[1].split()[:4]
                assert owner == [str(NOBODY)] * 4
            host, _, port = url.removeprefix("http://").rpartition(":")
            yield host.strip("[]"), int(port)
        finally:
            process.terminate()


def ask(
    address: tuple[str, int],
    path: str = "/metrics",
    method: str = "GET",
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers by their names in title case, body."""
    connection = http.client.HTTPConnection(*address, timeout=20)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        found = {name.title(): value for name, value in response.getheaders()}
        return response.status, found, response.read()
    finally:
        connection.close()
