"""Arguments, working directory, environment (step 9 of verify.py)."""

from __future__ import annotations

from egs_kernel.artifact.statement import ANY, DeclaredIntent, EnvironmentRules
from egs_kernel.artifact.variables import loads_code
from egs_kernel.checks.launch import launch_required
from egs_kernel.errors import Refused
from egs_kernel.model import ARGV_MAX, Intent, Reason


def check_intent(declared: DeclaredIntent, intent: Intent) -> tuple[bytes, ...] | None:
    """The exact arguments that the gate is to compare; None: they are free."""
    if intent.argv is None:
        return _check_standing(declared)
    argv = _argv_bytes(intent.argv)
    if declared.argv is not None:
        _check_argv(declared.argv, argv)
    if declared.cwd is not None and declared.cwd != intent.cwd:
        raise Refused(
            Reason.CWD_MISMATCH, f"it is for the working directory {declared.cwd}", f"Run: cd {declared.cwd}"
        )
    if intent.environment is not None or declared.environment is not None:
        check_environment(declared.environment, intent.environment)
    # A launch is held to the arguments it asked for even where the signer left them free.
    size = sum(len(argument) + 1 for argument in argv)
    return argv if declared.argv is not None or size <= ARGV_MAX else None


def _check_standing(declared: DeclaredIntent) -> tuple[bytes, ...] | None:
    if declared.cwd is not None:
        raise launch_required("the working directory is checked at a launch")
    if declared.environment is not None:
        raise launch_required("the environment is checked at a launch")
    if declared.argv is None:
        return None
    if ANY in declared.argv:
        raise launch_required("a free argument is checked at a launch")
    return tuple(argument.encode() for argument in declared.argv)


def _argv_bytes(argv: tuple[str, ...]) -> tuple[bytes, ...]:
    """The bytes of an argv as `os.fsdecode` gave it."""
    try:
        encoded = tuple(argument.encode("utf-8", "surrogateescape") for argument in argv)
    except UnicodeEncodeError as error:
        raise _argv_mismatch("an argument is no text that bytes decode to") from error
    if not encoded or any(b"\0" in argument for argument in encoded):
        raise _argv_mismatch("the argument list is empty, or an argument holds a NUL")
    return encoded


def _check_argv(declared: tuple[str, ...], argv: tuple[bytes, ...]) -> None:
    if len(declared) != len(argv):
        raise _argv_mismatch(f"{len(argv)} arguments, authorized are {len(declared)}")
    for index, (wanted, given) in enumerate(zip(declared, argv, strict=True)):
        if wanted not in (ANY, given.decode("utf-8", "surrogateescape")):
            raise _argv_mismatch(f"argument {index} is not the authorized one")
    if sum(len(argument) + 1 for argument in argv) > ARGV_MAX:
        raise _argv_mismatch(f"more than the {ARGV_MAX} bytes that the gate can compare")


def _argv_mismatch(message: str) -> Refused:
    return Refused(
        Reason.ARGV_MISMATCH, message, "Use the signed arguments (egs show), or have others issued."
    )


def check_environment(
    rules: EnvironmentRules | None, environment: tuple[tuple[str, str], ...] | None
) -> None:
    """Whether an environment, as (name, value) pairs, is what the rules say; without rules, whether it brings code.

    Raises:
        Refused: it is not, or it is not known.
    """
    if environment is None:
        raise _environment_mismatch("the environment is not known")
    present = dict(environment)
    if len(present) != len(environment):
        raise _environment_mismatch("a variable is set twice")
    fixed = rules.set if rules is not None else {}
    for name, value in fixed.items():
        if present.get(name) != value:
            raise _environment_mismatch(f"{name} must be {value!r}")
    for name in present.keys() - fixed.keys():
        if loads_code(name):
            raise _environment_mismatch(f"{name} makes programs load code, and its value is not signed")
        if rules is not None and name not in rules.allow:
            raise _environment_mismatch(f"{name} is not an allowed variable")


def _environment_mismatch(message: str) -> Refused:
    return Refused(
        Reason.ENVIRONMENT_MISMATCH, message, "Unset it (env -u NAME), or have it issued with --env."
    )
