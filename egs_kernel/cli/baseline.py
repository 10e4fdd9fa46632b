"""`egs baseline propose|show|diff|issue`: artifacts for what a scope really runs, for a person to review and sign."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from egs_kernel.baseline import proposal as pr
from egs_kernel.cli.output import columns, print_json, print_lines
from egs_kernel.cli.signing import add_keys_option, open_keys
from egs_kernel.config import load_config, parse_duration
from egs_kernel.errors import ExitCode, Refused, UsageError
from egs_kernel.model import Reason
from egs_kernel.paths import Paths

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from egs_kernel.cli.main import Commands
    from egs_kernel.sslib import Signer

_VALIDITY: Final = "30d"
_SIGNS: Final = {"added": "+", "changed": "~", "removed": "-"}
_PURPOSE: Final = "baseline of the scope"


def add_commands(commands: Commands) -> None:
    """Add `baseline`."""
    words = commands.add_parser(
        "baseline", help="propose artifacts for what a scope really runs, to be reviewed and signed"
    ).add_subparsers(title="actions", metavar="ACTION", required=True)
    propose = words.add_parser(
        "propose",
        help="write a proposal",
        description="Propose artifacts for what was executed in a scope (mode observe), and for packages, as a file to review. "
        "Interpreters are proposed with exactly the arguments and scripts that were seen; what cannot be authorized safely is left out, with why.",
    )
    propose.add_argument("--scope", metavar="S", help="the scope (default: that of --after)")
    propose.add_argument(
        "--since",
        metavar="7d",
        help="only what was executed since then (default: everything that the record has)",
    )
    propose.add_argument(
        "--path", type=Path, metavar="DIR", help="the record's folder, or a copy (default: the host's)"
    )
    propose.add_argument(
        "--package",
        action="append",
        default=[],
        metavar="NAME",
        help="all native programs of this package, seen or not; repeat for several",
    )
    propose.add_argument(
        "--after",
        type=Path,
        metavar="FILE",
        help="an earlier proposal: its programs are measured anew, as after an upgrade",
    )
    propose.add_argument("--not-observed", action="store_true", help="do not look into the record")
    propose.add_argument("--out", required=True, type=Path, metavar="FILE.toml", help="the proposal to write")
    propose.set_defaults(run=_propose)
    show = words.add_parser("show", help="a proposal, by package")
    show.add_argument("file", type=Path, metavar="FILE.toml")
    show.set_defaults(run=_show)
    diff = words.add_parser("diff", help="what a later proposal adds, changes and removes")
    diff.add_argument("before", type=Path, metavar="BEFORE.toml")
    diff.add_argument("file", type=Path, metavar="FILE.toml")
    diff.set_defaults(run=_diff)
    issue = words.add_parser(
        "issue",
        help="sign what is left of a proposal: one artifact for each program",
        description="Write a signed artifact for each program of a reviewed proposal. Every file is measured again, and must be the one that was proposed.",
    )
    issue.add_argument("file", type=Path, metavar="FILE.toml")
    add_keys_option(issue)
    issue.add_argument(
        "--after",
        type=Path,
        metavar="BEFORE.toml",
        help="only what this earlier proposal had not, or otherwise",
    )
    issue.add_argument(
        "--valid-for", default=_VALIDITY, metavar="30d", help=f"from now on (default: {_VALIDITY})"
    )
    issue.add_argument("--issuer", metavar="NAME", help="who issues it")
    issue.add_argument("--ticket", metavar="ID", help="where it was decided")
    issue.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="the folder to write the artifacts into"
    )
    issue.set_defaults(run=_issue)
    for parser in (propose, show, diff, issue):
        parser.add_argument("--json", action="store_true", help="print one JSON object")


# -- proposing ---------------------------------------------------------------------------------------


def _propose(options: argparse.Namespace) -> int:
    from egs_kernel.artifact.statement import format_time  # noqa: PLC0415 - for this action alone
    from egs_kernel.baseline.dpkg import Packages  # noqa: PLC0415 - as above
    from egs_kernel.baseline.observed import observed  # noqa: PLC0415 - as above
    from egs_kernel.baseline.propose import Files, propose  # noqa: PLC0415 - as above
    from egs_kernel.cli.files import replace_file  # noqa: PLC0415 - as above
    from egs_kernel.posture import host_id  # noqa: PLC0415 - as above

    paths = Paths.from_environment()
    before = None if options.after is None else _read(options.after)
    scope = options.scope or (None if before is None else before.scope)
    if scope is None:
        raise UsageError(
            Reason.USAGE, "the proposal is for no scope", "Give --scope, or an earlier one with --after."
        )
    if before is not None and scope != before.scope:
        raise UsageError(
            Reason.USAGE,
            f"the earlier proposal is for the scope {before.scope!r}",
            "Leave out --scope, or --after.",
        )
    now = datetime.now(UTC)
    since = ""
    if options.since is not None:
        start = now - timedelta(seconds=parse_duration(options.since, "--since"))
        since = start.isoformat(timespec="microseconds").replace("+00:00", "Z")
    seen = {} if options.not_observed else observed(_entries(options.path or paths.record), scope, since)
    found = propose(
        seen,
        Files(Packages.load()),
        scope=scope,
        host=host_id(load_config(paths.config)),
        time=format_time(now),
        packages=options.package,
        before=before,
    )
    replace_file(options.out, pr.render(found).encode())
    return _print(options, found, str(options.out))


def _entries(record: Path) -> Iterator[Any]:
    from egs_kernel.audit.reader import read  # noqa: PLC0415 - for this action alone

    return read(record)


def _read(path: Path) -> pr.Proposal:
    try:
        with path.open("rb") as file:
            content = file.read(pr.LIMIT)
    except OSError as error:
        raise UsageError(
            Reason.NOT_FOUND,
            f"cannot read {path}: {error.strerror}",
            "Name a file that egs baseline propose wrote.",
        ) from error
    return pr.parse(content, str(path))


# -- looking -----------------------------------------------------------------------------------------


def _show(options: argparse.Namespace) -> int:
    return _print(options, _read(options.file), str(options.file))


def _print(options: argparse.Namespace, proposal: pr.Proposal, where: str) -> int:
    import msgspec  # noqa: PLC0415 - for JSON alone

    if options.json:
        print_json({"file": where, **msgspec.to_builtins(proposal)})
        return int(ExitCode.DONE)
    print_lines([f"{where}: scope {proposal.scope}, proposed on {proposal.host} at {proposal.proposed}"])
    rows = [
        (
            f"{package.name} {package.version or ''}".strip(),
            program.path,
            str(program.seen),
            "any" if program.uid is None else str(program.uid),
            _arguments(program.argv),
        )
        for package, program in proposal.programs()
    ]
    print_lines(columns(("PACKAGE", "PROGRAM", "SEEN", "USER", "ARGUMENTS"), rows))
    if proposal.left_out:
        print_lines(["", f"Left out: {len(proposal.left_out)}"])
        print_lines(columns(("PROGRAM", "SEEN", "WHY", "ARGUMENTS"), _left_out(proposal)))
    return int(ExitCode.DONE)


def _left_out(proposal: pr.Proposal) -> list[tuple[str, str, str, str]]:
    """One row for each program and cause, however many command lines that were; the file has them all."""
    groups: dict[tuple[str, str], list[pr.LeftOut]] = {}
    for item in proposal.left_out:
        groups.setdefault((item.path, item.why), []).append(item)
    return [
        (
            path,
            str(sum(item.seen for item in items)),
            why,
            _arguments(items[0].argv) if len(items) == 1 else f"{len(items)} command lines",
        )
        for (path, why), items in groups.items()
    ]


def _arguments(argv: tuple[str, ...] | None) -> str:
    import shlex  # noqa: PLC0415 - for people alone

    return "any" if argv is None else " ".join(shlex.quote(word) for word in argv)


def _diff(options: argparse.Namespace) -> int:
    import msgspec  # noqa: PLC0415 - for JSON alone

    changes = pr.difference(_read(options.before), _read(options.file))
    if options.json:
        print_json({"changes": msgspec.to_builtins(changes)})
        return int(ExitCode.DONE)
    for change in changes:
        versions = change.now if change.was == change.now else f"{change.was or '-'} -> {change.now or '-'}"
        what = f"{change.program.path} {change.program.sha256[:16]} {_arguments(change.program.argv)}"
        print_lines([f"{_SIGNS[change.kind]} {change.package} {versions}: {what}"])
    print_lines([f"{len(changes)} differences"])
    return int(ExitCode.DONE)


# -- signing -----------------------------------------------------------------------------------------


def _issue(options: argparse.Namespace) -> int:
    proposal = _read(options.file)
    if options.after is not None:
        changes = pr.difference(_read(options.after), proposal)
        proposal = pr.only(proposal, (change.program for change in changes if change.kind != "removed"))
    programs = [program for _, program in proposal.programs()]
    made = [(program, _payload(options, proposal, program)) for program in programs]  # all of them, or none
    signers = open_keys(options)
    try:
        options.out.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            Reason.USAGE, f"cannot make {options.out}: {error.strerror}", "Name a folder that you can write."
        ) from error
    artifacts = [_write(options.out, program, payload, signers) for program, payload in made]
    if options.json:
        print_json({"artifacts": artifacts})
    else:
        print_lines(f"{one['id'][:16]}  {one['file']}" for one in artifacts)
        print_lines([f"{len(artifacts)} artifacts. Let each stand: egs artifacts add FILE"])
    return int(ExitCode.DONE)


def _payload(options: argparse.Namespace, proposal: pr.Proposal, program: pr.Program) -> bytes:
    """What is signed for a program that is still the one that was proposed."""
    from egs_kernel.artifact import statement as st  # noqa: PLC0415 - for this action alone
    from egs_kernel.checks.subjects import check_bound  # noqa: PLC0415 - as above
    from egs_kernel.cli.files import inspect_program  # noqa: PLC0415 - as above

    kind = inspect_program(Path(program.path)).kind
    subjects = [_subject(program, st.SubjectRole.PROGRAM)]
    subjects += [_subject(script, st.SubjectRole.SCRIPT) for script in program.script]
    now = datetime.now(UTC)
    end = now + timedelta(seconds=parse_duration(options.valid_for, "--valid-for"))
    try:
        statement = st.Statement(
            type=st.STATEMENT_TYPE,
            predicate_type=st.PREDICATE_TYPE,
            subject=tuple(subjects),
            predicate=st.Predicate(
                issued_at=st.format_time(now),
                not_before=st.format_time(now),
                not_after=st.format_time(end),
                scope=st.Scope(name=proposal.scope),
                identity=None if program.uid is None else st.Identity(uid=program.uid),
                intent=st.DeclaredIntent(argv=program.argv, purpose=f"{_PURPOSE} {proposal.scope}"),
                governance=st.Governance(issuer=options.issuer, ticket=options.ticket)
                if options.issuer or options.ticket
                else None,
            ),
        )
        payload = st.encode_statement(statement)
        st.parse_statement(payload)
        check_bound(statement, kind)
    except (ValueError, Refused) as error:
        message = error.message if isinstance(error, Refused) else str(error)
        raise UsageError(
            Reason.PROPOSAL_INVALID,
            f"{program.path} cannot be authorized so: {message}",
            "Correct the proposal, or propose anew.",
        ) from error
    return payload


def _subject(part: pr.Program | pr.Script, role: Any) -> Any:
    from egs_kernel.artifact import statement as st  # noqa: PLC0415 - as above
    from egs_kernel.cli.files import inspect_program  # noqa: PLC0415 - as above

    found = inspect_program(Path(part.path))
    if (str(found.path), found.digest) != (part.path, part.sha256):
        raise Refused(
            Reason.DIGEST_MISMATCH,
            f"{part.path} is not the file that was proposed: it has the SHA-256 {found.digest}",
            "Propose anew, and look at what has changed: egs baseline propose --after; egs baseline diff",
        )
    return st.Subject(
        name=part.path, digest=st.Digest(sha256=part.sha256), annotations=st.Annotations(role=role)
    )


def _write(folder: Path, program: pr.Program, payload: bytes, signers: list[Signer]) -> dict[str, str]:
    import hashlib  # noqa: PLC0415 - for this action alone

    from egs_kernel.artifact.envelope import sign  # noqa: PLC0415 - as above
    from egs_kernel.cli.files import replace_file  # noqa: PLC0415 - as above

    identifier = hashlib.sha256(payload).hexdigest()
    file = folder / f"{Path(program.path).name}-{identifier[:12]}.json"
    replace_file(file, sign(payload, signers))
    return {"id": identifier, "file": str(file), "program": program.path}
