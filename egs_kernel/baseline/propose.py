"""From what was observed, and what packages have, to a proposal. What is not safe to propose is left out, with why.

Deciding is pure; what is known of a file comes from `Files`, the edge.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from egs_kernel.artifact.interpreters import SCRIPT_HEAD, program_kind, script_interpreter
from egs_kernel.artifact.statement import argv_size
from egs_kernel.baseline.dpkg import md5_of
from egs_kernel.baseline.proposal import FORMAT, NO_PACKAGE, LeftOut, Package, Program, Proposal, Script
from egs_kernel.errors import EgsError, Refused
from egs_kernel.measure import digest_of
from egs_kernel.model import ARGV_MAX, ProgramKind, Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from egs_kernel.baseline.dpkg import Packages
    from egs_kernel.baseline.observed import Seen
    from egs_kernel.model import FileIdentity

PER_FILE: Final = 8
"""Standing artifacts for one file in one scope (bpf/egs_abi.h EGS_GRANTS_PER_FILE)."""
_LONGEST: Final = 1024
_INLINE: Final = re.compile(r"-[A-Za-z]*[ceEr]|--eval|--execute|-p|--print")
"""Options after which the code itself follows: sh -c, perl -e, php -r, node --eval."""
_TEXT: Final = re.compile(r"[\w-]*awk|bwk|sed|env")
"""Programs whose first argument is their code, or that start another program by an authorization of its own."""
_LOADER: Final = re.compile(r"ld[-.6].*")


class Found(NamedTuple):
    """A file as it is now: without symbolic links, with the times and sizes that the gate would see."""

    path: str
    sha256: str
    kind: ProgramKind
    head: bytes
    stamp: tuple[int, int, int, int]


class Files:
    """What is known of files: each is read once.

    Args:
        packages: who they belong to.
    """

    def __init__(self, packages: Packages) -> None:
        self.packages = packages
        self._found: dict[str, Found] = {}

    def find(self, path: str) -> Found:
        """Hash and classify a file.

        Raises:
            Refused: it cannot be, with why in words.
        """
        if path not in self._found:
            self._found[path] = _inspect(path)
        return self._found[path]

    def is_file(self, path: str) -> bool:
        """Whether there is a regular file."""
        return Path(path).is_file()

    def require_packaged(self, path: str) -> None:
        """What a package installed must be as it was packaged.

        Raises:
            Refused: it is not.
        """
        owner = self.packages.owner(path)
        if owner is not None and owner.md5 and md5_of(Path(path)) != owner.md5:
            raise _not(
                f"{path} is not what the package {owner.package} installed: dpkg --verify {owner.package}"
            )


def _inspect(path: str) -> Found:
    try:
        resolved = Path(path).resolve(strict=True)
        descriptor = os.open(resolved, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb"):
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _not(f"{path} is no regular file")
            digest = digest_of(descriptor, path)
            head = os.pread(descriptor, SCRIPT_HEAD, 0)
            kind = program_kind(str(resolved), partial(os.pread, descriptor))
    except (OSError, RuntimeError) as error:
        raise _not(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    seconds, nanoseconds = divmod(status.st_ctime_ns, 1_000_000_000)
    return Found(str(resolved), digest, kind, head, (status.st_ino, status.st_size, seconds, nanoseconds))


def _not(why: str) -> Refused:
    return Refused(Reason.PROPOSAL_INVALID, why, "See docs/baseline.md.")


@dataclass
class _Collected:
    """Programs by what makes them the same, whoever runs them; and what is left out."""

    programs: dict[tuple[str, tuple[str, ...] | None], Program] = field(default_factory=dict)
    users: dict[tuple[str, tuple[str, ...] | None], set[int | None]] = field(default_factory=dict)
    left_out: dict[tuple[str, str, tuple[str, ...] | None], int] = field(default_factory=dict)

    def add(self, program: Program, uid: int | None) -> None:
        key = program.path, program.argv
        seen = program.seen + (self.programs[key].seen if key in self.programs else 0)
        self.programs[key] = Program(
            path=program.path, sha256=program.sha256, seen=seen, argv=program.argv, script=program.script
        )
        self.users.setdefault(key, set()).add(uid)

    def leave_out(self, path: str, why: str, seen: int, argv: tuple[str, ...] | None) -> None:
        key = path, why, argv
        self.left_out[key] = self.left_out.get(key, 0) + seen


def propose(  # noqa: PLR0913 - what it is made of, by name
    seen: Mapping[Seen, int],
    files: Files,
    *,
    scope: str,
    host: str,
    time: str,
    packages: Iterable[str] = (),
    before: Proposal | None = None,
) -> Proposal:
    """Propose what was observed, what these packages have, and what an earlier proposal had.

    Args:
        seen: how often what was executed.
        files: what is known of files.
        scope: that it is for.
        host: the host's id.
        time: now, as proposals have it.
        packages: all programs of these, observed or not.
        before: its programs are measured anew.

    Raises:
        UsageError: one of the packages is not installed.
    """
    collected = _Collected()
    for one, count in seen.items():
        try:
            collected.add(_observed(one, count, files), one.uid)
        except EgsError as error:
            collected.leave_out(one.filename, error.message, count, one.argv)
    for name in packages:
        for path in files.packages.programs(name):
            try:
                collected.add(_packaged(str(path), files), None)
            except EgsError as error:
                collected.leave_out(str(path), error.message, 0, None)
    for program in () if before is None else (program for _, program in before.programs()):
        if (program.path, program.argv) not in collected.programs and files.is_file(program.path):
            try:
                collected.add(_again(program, files), program.uid)
            except EgsError as error:
                collected.leave_out(program.path, error.message, program.seen, program.argv)
    _limit(collected)
    return Proposal(
        format=FORMAT,
        scope=scope,
        host=host,
        proposed=time,
        package=_grouped(collected, files.packages),
        left_out=tuple(
            LeftOut(path=_plain(path), why=_plain(why), seen=count, argv=argv)
            for (path, why, argv), count in sorted(collected.left_out.items(), key=lambda item: item[0][:2])
        ),
    )


def _observed(one: Seen, count: int, files: Files) -> Program:
    """What was executed, as it is to be authorized."""
    if not one.filename.startswith("/"):
        raise _not("it was executed by a relative path, and in which folder is not recorded")
    found = files.find(one.filename)
    scripts: tuple[Script, ...] = ()
    if found.kind is ProgramKind.SCRIPT:
        scripts = (_script(found.path, files),)
        found = files.find(script_interpreter(found.head)[0])
    if found.stamp != _stamp(one.file):
        raise _not("it has changed since it was observed: observe it again")
    files.require_packaged(found.path)
    if found.kind is ProgramKind.NATIVE:
        return Program(path=found.path, sha256=found.sha256, seen=count)
    argv = _bindable(one.argv)
    scripts = scripts or _code(found.path, argv, files)
    return Program(path=found.path, sha256=found.sha256, seen=count, argv=argv, script=scripts)


def _packaged(path: str, files: Files) -> Program:
    found = files.find(path)
    files.require_packaged(found.path)
    if found.kind is not ProgramKind.NATIVE:
        raise _not("its arguments decide what runs, and it was not observed: observe it first")
    return Program(path=found.path, sha256=found.sha256)


def _again(program: Program, files: Files) -> Program:
    """A program of an earlier proposal, as it is now: changed by its package, or not at all."""
    found = files.find(program.path)
    scripts = tuple(_script(script.path, files) for script in program.script)
    _require_upgraded(found.path, program.sha256, found.sha256, files)
    for was, now in zip(program.script, scripts, strict=True):
        _require_upgraded(now.path, was.sha256, now.sha256, files)
    return Program(path=found.path, sha256=found.sha256, seen=program.seen, argv=program.argv, script=scripts)


def _require_upgraded(path: str, was: str, now: str, files: Files) -> None:
    files.require_packaged(path)
    owner = files.packages.owner(path)
    if was != now and (owner is None or not owner.md5):
        raise _not(f"{path} has changed, and no package says that it should: observe it again")


def _bindable(argv: tuple[str, ...] | None) -> tuple[str, ...]:
    """Arguments that an artifact can name exactly."""
    if argv is None:
        raise _not("its arguments decide what runs, and they were too long to be recorded whole")
    if not argv or "*" in argv:
        raise _not("its arguments decide what runs, and one of them is *, which an artifact reads as any")
    try:
        fits = argv_size(argv) <= ARGV_MAX
    except ValueError:
        fits = False
    if not fits or any(not word.isprintable() for word in argv):
        raise _not(
            f"its arguments decide what runs, and an artifact cannot hold them: plain text, {ARGV_MAX} bytes at most"
        )
    return argv


def _code(path: str, argv: tuple[str, ...], files: Files) -> tuple[Script, ...]:
    """Where an interpreter has its code from: a script that can be named by digest, or its arguments themselves."""
    name = Path(path).name
    if _LOADER.fullmatch(name):
        raise _not("the dynamic loader runs whatever program it is given: let that be executed itself")
    words = argv[1:]
    first = next((place for place, word in enumerate(words) if not word.startswith("-")), len(words))
    options = words[:first]
    if _TEXT.fullmatch(name) and not any(option.startswith(("-f", "--file", "-S")) for option in options):
        return ()
    if any(_INLINE.fullmatch(option) for option in options):
        return ()
    if first == len(words):
        raise _not("it takes its code from its input, or asks for it: nobody can sign that")
    if not words[first].startswith("/"):
        raise _not(
            f"it takes its code from {words[first]!r}, which depends on the folder it runs in: give it an absolute path"
        )
    if not files.is_file(words[first]):
        raise _not(f"its code, {words[first]}, is not there any more")
    return (_script(words[first], files),)


def _script(path: str, files: Files) -> Script:
    found = files.find(path)
    files.require_packaged(found.path)
    if found.path != path and Path(path).name != Path(found.path).name:
        raise _not(f"{path} is a symbolic link: let it be executed as {found.path}")
    return Script(path=found.path, sha256=found.sha256)


def _limit(collected: _Collected) -> None:
    """Of one file only so many artifacts can stand."""
    counts = Counter(path for path, _ in collected.programs)
    for key, program in list(collected.programs.items()):
        if counts[program.path] > PER_FILE:
            del collected.programs[key]
            why = (
                f"{counts[program.path]} different command lines of {program.path} were seen, and {PER_FILE} can stand in a scope: "
                "start it with egs run"
            )
            collected.leave_out(program.path, why, program.seen, program.argv)


def _grouped(collected: _Collected, packages: Packages) -> tuple[Package, ...]:
    groups: dict[str, list[Program]] = {}
    for key, program in sorted(collected.programs.items(), key=lambda item: (item[0][0], item[0][1] or ())):
        users = collected.users[key]
        (uid,) = users if len(users) == 1 else (None,)
        owner = packages.owner(program.path)
        bound = Program(
            path=program.path,
            sha256=program.sha256,
            seen=program.seen,
            uid=uid,
            argv=program.argv,
            script=program.script,
        )
        groups.setdefault(NO_PACKAGE if owner is None else owner.package, []).append(bound)
    return tuple(
        Package(name=name, version=packages.versions.get(name), program=tuple(programs))
        for name, programs in sorted(groups.items())
    )


def _stamp(file: FileIdentity) -> tuple[int, int, int, int]:
    return file.inode, file.size, file.ctime_seconds, file.ctime_nanoseconds


def _plain(text: str) -> str:
    return (
        "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)[:_LONGEST]
        or "?"
    )
