"""`egs authority init | serve | status`: the process that issues artifacts by policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from egs_kernel.cli.elsewhere import add_options, remote_of
from egs_kernel.cli.output import announce, print_json, print_lines
from egs_kernel.errors import ExitCode
from egs_kernel.paths import Paths

if TYPE_CHECKING:
    import argparse

    from egs_kernel.cli.main import Commands

USER = "egs-authority"

_SERVE = """Answer requests for artifacts, as any user but root: over a Unix socket, where the kernel says who asks, and over HTTPS
with client certificates where authority.toml says so. What is asked, what policy says and what is issued is in a record of its
own before anybody learns of it. SIGHUP has settings, trust and policy read again; a change of their files does, too."""

_INIT = """Make what a first authority on this host needs, and keep what is there: egs.toml with the scope, the folder of the
authority's user, its key, its settings, the trust in its key. The key is readable by that user alone. With --agent also a policy set
made of the starter ai-agent, for this script as it is, and a key that signs it; put that key where it is safe. Run it as root."""


def add_commands(commands: Commands) -> None:
    """Add `egs authority`."""
    paths = Paths.from_environment()
    authority = commands.add_parser("authority", help="issue artifacts by policy: intent in, artifact out")
    words = authority.add_subparsers(title="commands", metavar="COMMAND", required=True)
    serve = words.add_parser("serve", help="answer requests; refuses to run as root", description=_SERVE)
    serve.add_argument(
        "--passphrase-file",
        type=Path,
        metavar="FILE",
        help="its first line opens the key, if that is encrypted",
    )
    serve.set_defaults(run=run_serve)
    init = words.add_parser(
        "init",
        help="make the settings and the key of a first authority",
        description=_INIT,
    )
    init.add_argument("--scope", required=True, metavar="S", help="the scope that it issues for")
    init.add_argument("--user", metavar="U", default=USER, help=f"the user that it runs as ({USER})")
    init.add_argument(
        "--cgroup", metavar="PATH", help="of the scope, when egs.toml is made (/egs.slice/egs-S.slice)"
    )
    init.add_argument(
        "--agent",
        type=Path,
        metavar="FILE",
        help="also make, sign and trust a policy set: this script, with Python",
    )
    init.add_argument("--account", metavar="U", help="the account that the agent runs as (who calls this)")
    init.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="where set and policy key go (here)"
    )
    init.set_defaults(run=run_init)
    for parser in (serve, init):
        parser.add_argument(
            "--config",
            type=Path,
            default=paths.authority_config,
            metavar="FILE",
            help=f"its settings ({paths.authority_config})",
        )
        parser.add_argument(
            "--state",
            type=Path,
            default=paths.authority_state,
            metavar="DIR",
            help=f"its key, its record, and what it has to find again ({paths.authority_state})",
        )
    status = words.add_parser("status", help="what the running authority says of itself")
    status.set_defaults(run=run_status)
    add_options(status)
    for parser in (init, status):
        parser.add_argument("--json", action="store_true", help="print one JSON object")


def run_serve(arguments: argparse.Namespace) -> int:
    """Serve until interrupted.

    Raises:
        EgsError: it runs as root, is configured wrongly, or its state cannot be trusted.
    """
    from egs_kernel.authority.process import opened  # noqa: PLC0415 - Cedar and starlette are for those who serve
    from egs_kernel.authority.server import serve  # noqa: PLC0415 - as above
    from egs_kernel.identity.bundles import Bundles  # noqa: PLC0415 - as above
    from egs_kernel.trust.passphrases import Passphrases  # noqa: PLC0415 - as above
    from egs_kernel.web import refuse_root  # noqa: PLC0415 - as above

    refuse_root("egs authority serve", "egs-authority")
    paths = Paths.from_environment()
    passphrases = Passphrases.of_process(arguments.passphrase_file)
    with opened(paths, arguments.config, arguments.state, passphrases) as authority:
        serve(
            authority.application,
            paths.authority_socket,
            authority.settings.https,
            Bundles(paths.bundles),
            ready=announce,
            reload=authority.reload,
        )
    return int(ExitCode.DONE)


def run_init(arguments: argparse.Namespace) -> int:
    """Make what a first authority needs.

    Raises:
        EgsError: it may not, or there is no such user.
    """
    from egs_kernel.cli.first import init  # noqa: PLC0415 - as above

    return init(arguments)


def run_status(arguments: argparse.Namespace) -> int:
    """Show what the authority says of itself.

    Raises:
        Unreachable: it does not answer.
    """
    from egs_kernel.cli.asking import ask  # noqa: PLC0415 - as above

    answer = ask(Paths.from_environment(), "GET", "/v1/status", remote=remote_of(arguments))
    if arguments.json:
        print_json(answer)
    else:
        print_lines(f"{name:14} {value}" for name, value in answer.items())
    return int(ExitCode.DONE)
