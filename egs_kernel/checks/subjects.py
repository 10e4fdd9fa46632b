"""What was measured, and whether a program's arguments are bound (steps 6 and 9 of verify.py)."""

from __future__ import annotations

from egs_kernel.artifact.interpreters import is_interpreter_name
from egs_kernel.artifact.statement import ANY, Statement, Subject
from egs_kernel.errors import Refused
from egs_kernel.model import Intent, ProgramKind, Reason


def check_digest(statement: Statement, digest: str) -> None:
    """Step 6, for the program.

    Raises:
        Refused: DIGEST_MISMATCH.
    """
    _require_digest(statement.program, digest)


def check_script(statement: Statement, path: str, digest: str) -> None:
    """Step 6, for a script that its interpreter is authorized to run.

    Raises:
        Refused: DIGEST_MISMATCH: the artifact names no script of this path, or another content.
    """
    for subject in statement.code:
        if subject.name == path:
            _require_digest(subject, digest)
            return
    raise Refused(
        Reason.DIGEST_MISMATCH,
        f"{path} is a script, and the artifact names no script of this path",
        f"Name the script that it authorizes (egs show), or issue for it: egs issue --program {path}",
    )


def check_bound(statement: Statement, kind: ProgramKind) -> None:
    """Step 9, first part: a program that takes code from its arguments needs them signed.

    Every argument up to one that names a signed script must then be fixed: what is free before that
    could be the code.

    Raises:
        Refused: PROGRAM_UNBOUND.
    """
    name = statement.program.name
    # By the signed name, too: a copy of an interpreter under another name is still what was signed.
    if kind is ProgramKind.NATIVE and not is_interpreter_name(name):
        return
    if kind is ProgramKind.SCRIPT:
        raise Refused(
            Reason.PROGRAM_UNBOUND,
            f"{name} is a script: the kernel executes its interpreter",
            "Have an artifact issued for it: egs issue names its interpreter.",
        )
    declared = statement.predicate.intent
    argv = declared.argv if declared is not None else None
    if argv is None:
        raise Refused(
            Reason.PROGRAM_UNBOUND,
            f"{name} takes code from its arguments, and they are not bound",
            "Issue it with --argv for the whole command line.",
        )
    if ANY in argv and not _signed_code_names(statement) & set(argv[1 : argv.index(ANY)]):
        raise Refused(
            Reason.PROGRAM_UNBOUND,
            f"{name} takes code from its arguments, and one is free before any signed script",
            "Bind the arguments up to the script, and name the script with --script.",
        )


def check_measured(statement: Statement, intent: Intent) -> None:
    """Raise unless each script and library was measured and is the signed one."""
    measured = dict(intent.measured)
    for subject in statement.code:
        if subject.name not in measured:
            raise Refused(
                Reason.DIGEST_MISMATCH,
                f"{subject.name} was not measured",
                f"Check that {subject.name} exists.",
            )
        _require_digest(subject, measured[subject.name])


def _require_digest(subject: Subject, digest: str) -> None:
    if subject.digest.sha256 != digest:
        raise Refused(
            Reason.DIGEST_MISMATCH,
            f"the {subject.role.value} has SHA-256 {digest}, authorized is {subject.digest.sha256}",
            f"Restore {subject.name}, or have an artifact issued for what it is now.",
        )


def _signed_code_names(statement: Statement) -> set[str]:
    return {subject.name for subject in statement.code}
