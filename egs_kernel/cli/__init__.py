"""The `egs` command. `egs run` is in the way of every launch, so nothing else is imported for it."""

import sys

TYPE_CHECKING = False  # `typing` costs a millisecond that every launch would pay
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> "NoReturn":
    """The entry point of `egs`."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["run"]:
        from egs_kernel.launch import main as launch  # noqa: PLC0415 - see the module's docstring

        sys.exit(launch(arguments[1:], _authorize))
    from egs_kernel.cli.main import run  # noqa: PLC0415 - as above

    sys.exit(run(arguments))


def _authorize(program: str, argv: list[str], svid: str | None) -> "tuple[bytes, str | None] | None":
    if sys.flags.no_site:
        import site  # noqa: PLC0415 - asking takes packages, which the start has not looked for

        site.main()
    from egs_kernel.cli.elsewhere import authorized  # noqa: PLC0415 - for launches that nothing stands for

    return authorized(program, argv, svid)
