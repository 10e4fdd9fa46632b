"""A command line as the intent that the authority is asked to authorize: what the kernel would execute, by digest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egs_kernel.artifact.interpreters import SCRIPT_HEAD, script_interpreter
from egs_kernel.cli.files import inspect_program, read_head
from egs_kernel.errors import Refused
from egs_kernel.model import ProgramKind, Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from egs_kernel.cli.files import Program


def intent_of(program: str, argv: Sequence[str]) -> dict[str, Any]:
    """The intent to execute a program in this folder, with these arguments.

    A script is named beside the interpreter that the kernel executes for it. What an interpreter gets as its first argument
    that is a file is its script.

    Args:
        program: its path, as execve(2) would get it.
        argv: as the program gets it.

    Raises:
        UsageError: it cannot be read.
        Refused: it changed while it was hashed, or takes an interpreter that cannot be named.
    """
    measured = inspect_program(Path(program))
    words, scripts = tuple(argv), []
    if measured.kind is ProgramKind.SCRIPT:
        script, head = measured, script_interpreter(read_head(measured.path, SCRIPT_HEAD))
        measured = inspect_program(Path(head[0]))
        if measured.kind is ProgramKind.SCRIPT or measured.path.name == "env":
            raise Refused(
                Reason.PROGRAM_UNBOUND,
                f"{script.path} names {head[0]}, which executes another program by an authorization of its own",
                "Write the path of the interpreter itself into its first line.",
            )
        words, scripts = (*head, program, *words[1:]), [script]
    elif measured.kind is ProgramKind.INTERPRETER:
        first = next((Path(word) for word in words[1:] if Path(word).is_file()), None)
        scripts = [] if first is None else [inspect_program(first)]
    intent: dict[str, Any] = {"program": _named(measured), "argv": list(words), "cwd": str(Path.cwd())}
    if scripts:
        intent["scripts"] = [_named(script) for script in scripts]
    return intent


def random_key() -> str:
    """A new idempotency key."""
    return os.urandom(16).hex()


def _named(file: Program) -> dict[str, str]:
    return {"path": str(file.path), "sha256": file.digest}
