"""`egs issue` and `egs sign`: artifacts made and signed."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import msgspec

from egs_kernel.artifact import statement as st
from egs_kernel.artifact.envelope import parse_envelope, sign, sign_also
from egs_kernel.artifact.interpreters import SCRIPT_HEAD, script_interpreter
from egs_kernel.artifact.maintenance import is_maintenance, parse_maintenance
from egs_kernel.artifact.strict import misfit
from egs_kernel.checks.subjects import check_bound
from egs_kernel.cli.files import inspect_program, read_artifact, read_head, replace_file
from egs_kernel.cli.output import print_json, print_lines
from egs_kernel.cli.signing import KEY, add_keys_option, add_passphrase_option, open_key, open_keys
from egs_kernel.config import moment_after
from egs_kernel.constraints.plan import check as check_constraints
from egs_kernel.errors import ExitCode, Refused, UsageError
from egs_kernel.model import ProgramKind, Reason
from egs_kernel.trust.store import ANY_SCOPE, require_scope_name
from egs_kernel.verify import artifact_id

if TYPE_CHECKING:
    import argparse

    from egs_kernel.cli.files import Program
    from egs_kernel.cli.main import Commands

_CONSTRAINTS_LIMIT = 64 * 1024
_DEFAULT_VALIDITY = "1h"
_CODE = "Bind its whole command line with --argv, argv[0] included."


_T = TypeVar("_T")


@dataclass(frozen=True)
class _Files:
    """The measured subjects, and the arguments as the program gets them; None: any."""

    program: Program
    scripts: tuple[Program, ...]
    libraries: tuple[Program, ...]
    children: tuple[Program, ...]
    argv: tuple[str, ...] | None


def add_commands(commands: Commands) -> None:
    """Add `issue` and `sign`."""
    issue = commands.add_parser(
        "issue",
        help="write a signed artifact",
        description="Authorize a program: hash it, say who may run it, how, where, until when; sign that.",
    )
    add_keys_option(issue)
    issue.add_argument("--scope", required=True, metavar="S", help="the scope it is for")
    issue.add_argument("--out", required=True, type=Path, metavar="FILE", help="the artifact to write")
    issue.add_argument("--json", action="store_true", help="print one JSON object")
    _add_what(issue.add_argument_group("what"))
    _add_who(issue.add_argument_group("who and where"))
    _add_when(issue.add_argument_group("when"))
    _add_why(issue.add_argument_group("why, and where it comes from"))
    issue.set_defaults(run=_issue)
    cosign = commands.add_parser("sign", help="add a signature to an artifact (for scopes with a threshold)")
    cosign.add_argument("file", type=Path, metavar="FILE")
    cosign.add_argument("--key", required=True, metavar=KEY, help="sign with this key, a file or a URI")
    add_passphrase_option(cosign)
    cosign.add_argument("--json", action="store_true", help="print one JSON object")
    cosign.set_defaults(run=_sign)


def _add_what(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--program", required=True, type=Path, metavar="PATH", help="the executable, or a script"
    )
    group.add_argument(
        "--argv",
        action="append",
        metavar="A",
        help="one argument, argv[0] first; * frees one. Without it all are free",
    )
    for role in ("script", "library", "child"):
        group.add_argument(
            f"--{role}", action="append", default=[], type=Path, metavar="PATH", help=f"a {role}, by digest"
        )
    group.add_argument("--cwd", metavar="DIR", help="the working directory")
    group.add_argument(
        "--env",
        action="append",
        metavar="NAME[=VALUE]",
        help="an allowed variable, or its exact value; others are refused",
    )
    group.add_argument("--constraints", type=Path, metavar="FILE.toml", help="what holds while it runs")
    group.add_argument("--max-uses", type=int, metavar="N", help="how many executions")


def _add_who(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--user", metavar="U", help="user name")
    group.add_argument("--uid", type=int, metavar="N", help="user id")
    group.add_argument(
        "--group", action="append", default=[], metavar="G", help="a group the user must be in: name or id"
    )
    group.add_argument("--spiffe-id", metavar="ID", help="SPIFFE id of the workload")
    group.add_argument(
        "--unit", metavar="NAME", help="the systemd unit in which it is launched, like backup.service"
    )
    group.add_argument(
        "--host", action="append", default=[], metavar="ID", help="a host's id, or its key's (egs status)"
    )
    group.add_argument(
        "--host-label", action="append", default=[], metavar="L", help="a label the host must have"
    )
    group.add_argument("--cgroup", metavar="PATH", help="the cgroup below which it must run")


def _add_when(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--valid-for", metavar="1h", help=f"from now on (default: {_DEFAULT_VALIDITY})")
    group.add_argument("--not-before", metavar="T", help="like 2026-11-23T14:00:00Z")
    group.add_argument("--not-after", metavar="T")


def _add_why(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--purpose", metavar="TEXT", help="what for, in words")
    group.add_argument("--policy-digest", metavar="SHA256", help="of the policy set that was evaluated")
    group.add_argument("--parent", metavar="ID", help="the artifact it derives from")
    group.add_argument("--parent-execution", metavar="ID", help="the execution that asked for it")
    group.add_argument("--request-id", metavar="ID", help="the request that it answers")
    group.add_argument("--intent-digest", metavar="SHA256", help="of the intent that was asked for")
    group.add_argument("--issuer", metavar="NAME", help="who issues it")
    group.add_argument("--approver", action="append", default=[], metavar="NAME", help="who approved it")
    group.add_argument("--ticket", metavar="ID", help="where it was decided")
    group.add_argument("--risk", choices=("low", "medium", "high", "critical"))


def _issue(options: argparse.Namespace) -> int:
    if options.scope == ANY_SCOPE:
        raise UsageError(Reason.USAGE, "an artifact is for one scope", "Name it with --scope.")
    require_scope_name(options.scope)
    signers = open_keys(options)
    files = _inspect(options)
    now = datetime.now(UTC)
    try:
        statement = _statement(options, files, now)
        payload = st.encode_statement(statement)
        st.parse_statement(payload)
    except (ValueError, Refused) as error:
        _reject(error)
    _require_usable(statement, files)
    content = sign(payload, signers)
    replace_file(options.out, content)
    report_artifact(options, content)
    return ExitCode.DONE


def _sign(options: argparse.Namespace) -> int:
    signer = open_key(options.key, options.passphrase_file)
    envelope = parse_envelope(read_artifact(options.file))
    _window_of(envelope.payload)
    if signer.public_key.keyid in envelope.signatures:
        raise UsageError(
            Reason.USAGE, f"{options.file} already has a signature of this key", "Use another key."
        )
    content = sign_also(envelope, [signer])
    replace_file(options.file, content)
    options.out = options.file
    report_artifact(options, content)
    return ExitCode.DONE


def _window_of(payload: bytes) -> tuple[str, str]:
    """From and until when an artifact is valid: an authorization, or a maintenance artifact.

    Raises:
        Refused: it is neither.
    """
    statement = parse_maintenance(payload) if is_maintenance(payload) else st.parse_statement(payload)
    return statement.predicate.not_before, statement.predicate.not_after


def report_artifact(options: argparse.Namespace, content: bytes) -> None:
    """Say what was written."""
    envelope = parse_envelope(content)
    not_before, not_after = _window_of(envelope.payload)
    answer = {
        "id": artifact_id(envelope),
        "file": str(options.out),
        "keyids": list(envelope.signatures),
        "notBefore": not_before,
        "notAfter": not_after,
        "notes": list(notes_of(envelope.payload)),
    }
    if options.json:
        print_json(answer)
        return
    print_lines([f"artifact  {answer['id']}", f"file      {answer['file']}"])
    print_lines([f"valid     {not_before} to {not_after}"])
    print_lines(f"note      {note}" for note in notes_of(envelope.payload))


def notes_of(payload: bytes) -> tuple[str, ...]:
    """What whoever signs or reads an artifact should not overlook."""
    if is_maintenance(payload):
        return ()
    constraints = st.parse_statement(payload).predicate.constraints
    return () if constraints is None else constraints.notes


def _inspect(options: argparse.Namespace) -> _Files:
    scripts, libraries, children = (
        tuple(inspect_program(path) for path in paths)
        for paths in (options.script, options.library, options.child)
    )
    program = inspect_program(options.program)
    # argparse makes nothing of `--argv=--` (before Python 3.13): an empty list is that word.
    argv = None if options.argv is None else tuple("--" if word == [] else word for word in options.argv)
    if program.kind is ProgramKind.SCRIPT:
        scripts = (program, *(script for script in scripts if script.path != program.path))
        program, argv = _executed_for(program, argv)
    return _Files(program, scripts, libraries, children, argv)


def _executed_for(script: Program, argv: tuple[str, ...] | None) -> tuple[Program, tuple[str, ...]]:
    """What the kernel executes for a script, and the arguments that it gets."""
    if argv is None:
        raise Refused(
            Reason.PROGRAM_UNBOUND,
            f"{script.path} is a script: its interpreter takes its arguments, and they are not bound",
            f"Bind its whole command line: --argv {script.path} --argv …",
        )
    words = script_interpreter(read_head(script.path, SCRIPT_HEAD))
    interpreter = inspect_program(Path(words[0]))
    if interpreter.kind is ProgramKind.SCRIPT or interpreter.path.name == "env":
        raise Refused(
            Reason.PROGRAM_UNBOUND,
            f"{script.path} names {words[0]}, which executes another program by an authorization of its own",
            "Write the path of the interpreter itself into its first line.",
        )
    return interpreter, (*words, str(script.path), *argv[1:])


def _statement(options: argparse.Namespace, files: _Files, now: datetime) -> st.Statement:
    roles = st.SubjectRole
    subjects = [_subject(files.program, roles.PROGRAM)]
    subjects += [_subject(item, roles.SCRIPT) for item in files.scripts]
    subjects += [_subject(item, roles.LIBRARY) for item in files.libraries]
    subjects += [_subject(item, roles.CHILD) for item in files.children]
    start, end = _window(options, now)
    return st.Statement(
        type=st.STATEMENT_TYPE,
        predicate_type=st.PREDICATE_TYPE,
        subject=tuple(subjects),
        predicate=st.Predicate(
            issued_at=st.format_time(now),
            not_before=st.format_time(start),
            not_after=st.format_time(end),
            scope=st.Scope(name=options.scope, policy_digest=options.policy_digest),
            identity=_present(_identity(options)),
            intent=_present(_intent(options, files.argv)),
            constraints=_constraints(options.constraints),
            uses=options.max_uses,
            lineage=_present(
                st.Lineage(
                    parent_artifact=options.parent,
                    parent_execution=options.parent_execution,
                    request_id=options.request_id,
                    intent_digest=options.intent_digest,
                )
            ),
            governance=_present(
                st.Governance(
                    issuer=options.issuer,
                    approvers=tuple(options.approver),
                    ticket=options.ticket,
                    risk=options.risk,
                )
            ),
        ),
    )


def _subject(item: Program, role: st.SubjectRole) -> st.Subject:
    return st.Subject(
        name=str(item.path), digest=st.Digest(sha256=item.digest), annotations=st.Annotations(role=role)
    )


def _identity(options: argparse.Namespace) -> st.Identity:
    return st.Identity(
        user=options.user,
        uid=options.uid,
        groups=tuple(int(name) if name.isdecimal() else name for name in options.group),
        spiffe_id=options.spiffe_id,
        hosts=tuple(options.host),
        host_labels=tuple(options.host_label),
        cgroup=options.cgroup,
        unit=options.unit,
    )


def _intent(options: argparse.Namespace, argv: tuple[str, ...] | None) -> st.DeclaredIntent:
    return st.DeclaredIntent(
        argv=argv,
        cwd=options.cwd,
        environment=_environment(options.env),
        purpose=options.purpose,
    )


def _environment(rules: list[str] | None) -> st.EnvironmentRules | None:
    if rules is None:
        return None
    pairs = [rule.partition("=") for rule in rules]
    return st.EnvironmentRules(
        allow=tuple(name for name, equals, _value in pairs if not equals),
        set={name: value for name, equals, value in pairs if equals},
    )


def _present(value: _T) -> _T | None:
    """A part that says nothing is left out."""
    return value if msgspec.to_builtins(value) else None


def _constraints(path: Path | None) -> st.Constraints | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            table: dict[str, Any] = tomllib.loads(file.read(_CONSTRAINTS_LIMIT).decode())
        return msgspec.convert(table, st.Constraints)
    except OSError as error:
        raise UsageError(
            Reason.NOT_FOUND, f"cannot read {path}: {error.strerror}", "Check the path."
        ) from error
    except (ValueError, RecursionError) as error:
        problem = misfit(error) if isinstance(error, msgspec.ValidationError) else str(error)
        raise UsageError(
            Reason.CONFIG_INVALID, f"{path}: {problem}", "docs/artifact.md lists the constraints."
        ) from error


def _window(options: argparse.Namespace, now: datetime) -> tuple[datetime, datetime]:
    if options.not_after is not None and options.valid_for is not None:
        raise UsageError(Reason.USAGE, "--valid-for and --not-after exclude each other", "Give one of them.")
    start = now if options.not_before is None else st.parse_time(options.not_before)
    if options.not_after is not None:
        return start, st.parse_time(options.not_after)
    return start, moment_after(start, options.valid_for or _DEFAULT_VALIDITY, "--valid-for")


def _require_usable(statement: st.Statement, files: _Files) -> None:
    """Refuse to sign what could never be used."""
    check_bound(statement, files.program.kind)
    constraints = statement.predicate.constraints
    if constraints is not None:
        check_constraints(constraints)
        _require_native_children(constraints, files)
    if files.program.kind is ProgramKind.INTERPRETER:
        _require_scripts_named(statement)


def _require_native_children(constraints: st.Constraints, files: _Files) -> None:
    """Nobody binds the arguments of what is listed."""
    for child in files.children if constraints.lists_children else ():
        if child.kind is not ProgramKind.NATIVE:
            raise Refused(
                Reason.PROGRAM_UNBOUND,
                f"constraints.process.children: {child.path} takes code from its arguments, which nobody binds",
                'Give it an artifact of its own, and this one children = "any-authorized".',
            )


def _require_scripts_named(statement: st.Statement) -> None:
    """An interpreter's argument that is a file here is code: sign its digest as well."""
    named = {subject.name for subject in statement.subject}
    intent = statement.predicate.intent
    for argument in (intent.argv or ())[1:] if intent is not None else ():
        if argument.startswith("/") and argument not in named and Path(argument).is_file():
            raise Refused(
                Reason.PROGRAM_UNBOUND,
                f"{argument} is given to an interpreter, and its content is not signed",
                f"Add --script {argument}",
            )


def _reject(error: ValueError | Refused) -> NoReturn:
    reason = error.reason if isinstance(error, Refused) else Reason.USAGE
    message = error.message if isinstance(error, Refused) else str(error)
    raise UsageError(reason, f"this cannot be issued: {message}", "Correct the options.") from error
