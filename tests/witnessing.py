"""Witnesses that tests run: a folder for one, the process, its key."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egs_kernel.audit.notes import VerifierKey

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY: Final = 65534

# Everything is imported while it may still be read: a checkout can lie where only root may go.
SERVE: Final = """
import encodings.idna, os, sys
import anyio._backends._asyncio, egs_kernel.cli.witness, egs_kernel.witness.app, egs_kernel.witness.settings
import egs_kernel.witness.state, uvicorn.lifespan.off
from egs_kernel.cli.main import run
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(run(["witness", *sys.argv[1:]]))
"""


@contextmanager
def witness_home(configuration: str) -> Iterator[Path]:
    """A folder with a witness's configuration, and one for its state that belongs to the user it runs as."""
    with tempfile.TemporaryDirectory() as name:
        found = Path(name)
        found.chmod(0o755)
        (found / "witness.toml").write_text(configuration)
        (found / "state").mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(found / "state", NOBODY, NOBODY)
        yield found


def command(home: Path, word: str) -> list[str]:
    options = ["--config", str(home / "witness.toml"), "--state", str(home / "state")]
    return [sys.executable, "-c", SERVE, word, *options]


@contextmanager
def serving(home: Path) -> Iterator[tuple[str, int]]:
    """A witness of another user than root; its host and port."""
    with subprocess.Popen(command(home, "serve"), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            host, _, port = process.stdout.readline().strip().removeprefix("http://").rpartition(":")
            yield host, int(port)
        finally:
            process.send_signal(signal.SIGKILL)


def verifier(home: Path) -> VerifierKey:
    done = subprocess.run([*command(home, "key"), "--json"], capture_output=True, text=True, check=True)
    return VerifierKey.parse(json.loads(done.stdout)["verifier_key"])


@contextmanager
def witness_of(log: VerifierKey) -> Iterator[tuple[tuple[str, int], VerifierKey]]:
    """A witness that runs and knows one log by its key; its address and its own key."""
    known = f'[[log]]\norigin = "{log.name}"\nkeys = ["{log}"]\n'
    with witness_home(f'name = "w.example.com/1"\nlisten = "127.0.0.1:0"\n{known}') as home:
        key = verifier(home)
        with serving(home) as address:
            yield address, key
