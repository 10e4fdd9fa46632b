"""`egs wrap PATH`: whoever executes PATH launches it with `egs run`, without knowing.

The program moves to PATH.egs-real, in the same folder, so that it still finds what lies beside it. PATH becomes
a shim. The program keeps its inode, and at no moment is there nothing at PATH. Where PATH belongs to a Debian
package it is diverted, so that an upgrade replaces the program and not the shim.

A shim is a script, so the kernel tells it no argv[0]: the program sees PATH there. Artifacts name PATH.egs-real
as their program, and PATH as argv[0]; a scope of binaries lists PATH.egs-real.
"""

from __future__ import annotations

import argparse
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egs_kernel.cli.output import print_json, print_lines
from egs_kernel.errors import EgsError, ExitCode, UsageError
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from egs_kernel.cli.main import Commands

SUFFIX: Final = ".egs-real"
MARK: Final = "# egs-kernel shim: see `egs wrap`"
_SHEBANG_LIMIT: Final = 250  # the kernel reads 256 bytes of a script's first line


def add_commands(commands: Commands) -> None:
    """Add `wrap`."""
    parser = commands.add_parser(
        "wrap",
        help="have a program launched by `egs run` whoever executes it",
        description=f"Move the program at PATH to PATH{SUFFIX} and put a shim in its place that starts it with "
        "egs run. Artifacts then name the moved program.",
    )
    parser.add_argument("path", metavar="PATH", help="the program, by its absolute path")
    parser.add_argument("--undo", action="store_true", help="put the program back")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    path = Path(options.path)
    real = path.with_name(path.name + SUFFIX)
    try:
        unwrap(path, real) if options.undo else wrap(path, real)
    except PermissionError as error:
        raise EgsError(
            Reason.NOT_PERMITTED, f"{error.filename}: {error.strerror}", "Run it as root."
        ) from error
    except OSError as error:
        raise EgsError(
            Reason.PATH_UNSAFE,
            f"{error.filename or path}: {error.strerror}",
            "Nothing is half done: try again.",
        ) from error
    if options.json:
        print_json({"path": str(path), "real": str(real), "wrapped": not options.undo})
    elif options.undo:
        print_lines([f"{path} is itself again."])
    else:
        print_lines(
            [
                f"{path} now launches {real}.",
                f"Issue artifacts with: --program {real} --argv {path} …",
                f"In a scope of binaries, list {real}.",
            ]
        )
    return int(ExitCode.DONE)


def wrap(path: Path, real: Path) -> None:
    """Put a shim at `path` and the program at `real`.

    Raises:
        UsageError: it cannot be wrapped, or is wrapped already.
        OSError: the folder does not let us.
    """
    status = _require_program(path, real)
    shim = path.with_name(f".{path.name}.egs-shim")
    shim.unlink(missing_ok=True)
    shim.write_text(shim_text(path, real))
    shutil.chown(shim, status.st_uid, status.st_gid)
    shim.chmod(stat.S_IMODE(status.st_mode))
    real.hardlink_to(path)  # both names at once: nobody finds nothing
    try:
        _divert("--add", path, real)
        shim.rename(path)
    except BaseException:
        real.unlink()
        shim.unlink(missing_ok=True)
        raise


def unwrap(path: Path, real: Path) -> None:
    """Put the program back.

    Raises:
        UsageError: it is not wrapped.
        OSError: the folder does not let us.
    """
    if not is_shim(path) or not real.is_file():
        raise UsageError(Reason.USAGE, f"{path} is not wrapped", "Name the path that was given to egs wrap.")
    real.rename(path)
    _divert("--remove", path, real)


def is_shim(path: Path) -> bool:
    """Whether the file at `path` is one of ours."""
    try:
        with path.open("rb") as file:
            return MARK.encode() in file.read(1024)
    except FileNotFoundError:
        return False


def shim_text(path: Path, real: Path, interpreter: str = sys.executable) -> str:
    """The shim: Python in isolated mode, so that nothing of the caller's reaches into it. Pure.

    Raises:
        UsageError: the kernel would not find this installation's Python.
    """
    first = f"#!{interpreter} -I"
    if len(first) > _SHEBANG_LIMIT or any(letter.isspace() for letter in interpreter):
        raise UsageError(
            Reason.USAGE,
            f"{interpreter} cannot stand in the first line of a script",
            "Install egs-kernel under a shorter path without spaces.",
        )
    lines = [
        first,
        MARK,
        "import sys",
        "from egs_kernel.launch import main",
        f"sys.exit(main(['--argv0', {str(path)!r}, '--', {str(real)!r}, *sys.argv[1:]]))",
    ]
    return "\n".join([*lines, ""])


def _require_program(path: Path, real: Path) -> os.stat_result:
    if not path.is_absolute() or path != Path(os.path.normpath(path)):
        raise UsageError(
            Reason.USAGE, f"{path} is no plain absolute path", "Give the program's absolute path."
        )
    if path != path.resolve():
        raise UsageError(
            Reason.USAGE, f"{path} leads over a symbolic link", f"Wrap what it points to: {path.resolve()}"
        )
    if is_shim(path) or real.exists():
        raise UsageError(
            Reason.USAGE, f"{path} is wrapped already", f"To take it back: egs wrap --undo {path}"
        )
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise UsageError(Reason.NOT_FOUND, f"{path} does not exist", "Name an installed program.") from error
    if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
        raise UsageError(Reason.USAGE, f"{path} is no executable file", "Name a program.")
    if status.st_mode & (stat.S_ISUID | stat.S_ISGID) or "security.capability" in os.listxattr(path):
        raise UsageError(
            Reason.USAGE,
            f"{path} gains privileges when it is executed, and a shim would not",
            "Govern it by a scope of binaries, and a standing artifact.",
        )
    with path.open("rb") as file:
        if file.read(2) == b"#!":
            raise UsageError(
                Reason.PROGRAM_UNBOUND,
                f"{path} is a script: what is executed is its interpreter",
                "Wrap nothing; issue for the interpreter, with --script and the whole --argv.",
            )
    return status


def _divert(action: str, path: Path, real: Path) -> None:
    """Tell dpkg, when the path is a package's, where the package's file lies now."""
    if shutil.which("dpkg-divert") is None:
        return
    for name, target in _names_for_dpkg(path, real):
        if action == "--remove" or _output(["dpkg-query", "--search", name]).returncode == 0:
            done = _output(
                ["dpkg-divert", "--quiet", "--local", "--no-rename", "--divert", target, action, name]
            )
            if done.returncode != 0:
                raise EgsError(
                    Reason.PATH_UNSAFE,
                    f"dpkg-divert: {done.stderr.strip()}",
                    f"Look at: dpkg-divert --list {name}",
                )


def _names_for_dpkg(path: Path, real: Path) -> list[tuple[str, str]]:
    """A package from before the merged /usr knows /usr/bin/ls as /bin/ls."""
    names = [(str(path), str(real))]
    if path.is_relative_to("/usr"):
        names.append((f"/{path.relative_to('/usr')}", f"/{real.relative_to('/usr')}"))
    return names


def _output(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False)
