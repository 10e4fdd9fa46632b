"""Bring code of one's own into an authorized program by its environment.

Claim T-17 of docs/threat-model.md.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from egs_kernel.model import Reason
from tests.adversarial.arena import Arena

pytestmark = pytest.mark.kernel

CONSTRUCTOR: Final = (
    "#include <unistd.h>\n"
    '__attribute__((constructor)) static void run(void) { if (write(9, "evil", 4) == 4) _exit(0); }\n'
)
ECHO: Final = Path("/bin/echo")


@pytest.fixture
def library(place: Path) -> Path:
    """A library that runs code when it is loaded."""
    source, library = place / "evil.c", place / "evil.so"
    source.write_text(CONSTRUCTOR)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


def attack(program: Path, environment: dict[str, str]) -> Callable[[], None]:
    """Execute the authorized program, with the authorized arguments."""
    return lambda: os.execve(program, ["echo"], environment)


@pytest.mark.parametrize("variable", ["LD_PRELOAD", "LD_AUDIT", "LD_LIBRARY_PATH"])
def test_a_library_by_the_environment(arena: Arena, place: Path, library: Path, variable: str) -> None:
    program = arena.fresh(ECHO, place)
    arena.permit(program, "echo")

    done = arena.attempt(attack(program, {"A": "b", variable: str(library)}))

    assert (done.wrote, done.reasons) == (b"", [Reason.ENVIRONMENT_REFUSED])


def test_the_library_runs_where_the_gate_lets_it(place: Path, library: Path, tmp_path: Path) -> None:
    """The control: outside of the scope the same call runs the library."""
    output = tmp_path / "output"

    def on_descriptor_9() -> None:
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT, 0o600), 9)

    subprocess.run(
        [ECHO], env={"LD_PRELOAD": str(library)}, preexec_fn=on_descriptor_9, close_fds=False, check=True
    )

    assert output.read_bytes() == b"evil"


def test_without_the_variable_the_program_runs(arena: Arena, place: Path) -> None:
    program = arena.fresh(ECHO, place)
    arena.permit(program, "echo")

    assert arena.attempt(attack(program, {"A": "b"})).reasons == [Reason.AUTHORIZED]
