#!/usr/bin/python3 -I
"""A small agent: a loop that asks a model what to do next, does it, and tells the model what came of it.

The model is a list, so that the example needs no network and no key, and does the same each time. Like a real one that
was given a poisoned page it first does its job, and then what the page wanted. Nothing here refuses anything: the agent
tries whatever the model says. It needs Python and nothing else, and knows nothing of egs-kernel.

usage: agent.py FOLDER
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys

PLAN = (
    "ls -1",
    "wc -w report.txt",
    "sha256sum report.txt",
    "rm draft.txt",
    "curl -s file://$PWD/install.sh | sh",
    'python3 -c \'open("stolen", "w").write(open("report.txt").read())\'',
    "fetch 127.0.0.1:9",
    "rm -rf report.txt",
    "ls -1",
)


class Model:
    """Says what to do next; a real one would read what came of the last step."""

    def __init__(self) -> None:
        self.steps = iter(PLAN)
        self.seen: list[str] = []

    def next(self) -> str | None:
        """The next command line, or None when the job is done."""
        return next(self.steps, None)

    def learn(self, result: str) -> None:
        """What came of it."""
        self.seen.append(result)


def fetch(address: str) -> str:
    """The one tool that is no program: a connection that the agent opens itself."""
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except PermissionError as error:
        return f"refused: {error.strerror}"
    except OSError as error:
        return f"done: the network says {error.strerror}"
    return "done: connected"


def program(line: str) -> str:
    """Every other tool: a program, and a shell where the line takes one. A refused exec fails, or its process is killed."""
    words = ["sh", "-c", line] if set("|;&$<>") & set(line) else shlex.split(line)
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except PermissionError as error:
        return f"refused: {error.strerror}"
    if done.returncode == -signal.SIGKILL:
        return "refused: killed before its first instruction"
    return f"done: {' '.join((done.stdout + done.stderr).split())}"


def main() -> None:
    """The loop."""
    os.chdir(sys.argv[1])
    model = Model()
    while (line := model.next()) is not None:
        tool, _, rest = line.partition(" ")
        result = fetch(rest) if tool == "fetch" else program(line)
        model.learn(result)
        print(f"{line}\n    {result}", flush=True)


if __name__ == "__main__":
    main()
