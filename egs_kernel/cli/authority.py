"""`egs authority init | serve | status`: the process that issues artifacts by policy."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from egs_kernel.cli.output import announce, print_json, print_lines
from egs_kernel.errors import ExitCode, UsageError
from egs_kernel.model import Reason
from egs_kernel.paths import Paths

if TYPE_CHECKING:
    import argparse

    from egs_kernel.cli.main import Commands

USER = "egs-authority"

_SERVE = """Answer requests for artifacts, as any user but root: over a Unix socket, where the kernel says who asks, and over HTTPS
with client certificates where authority.toml says so. What is asked, what policy says and what is issued is in a record of its
own before anybody learns of it. SIGHUP has settings, trust and policy read again; a change of their files does, too."""

_INIT = """Make what a first authority on this host needs, and keep what is there: its user's folder, its key, its settings, and the
trust in its key. Run it as root, once. The key is readable by the authority's user alone."""

_SETTINGS = """# The authority (docs/authority.md).
default_scope = "{scope}"
valid_for = "5m"
max_valid_for = "1h"
may_see = ["group:egs-approvers"]
"""


def add_commands(commands: Commands) -> None:
    """Add `egs authority`."""
    paths = Paths.from_environment()
    authority = commands.add_parser("authority", help="issue artifacts by policy: intent in, artifact out")
    words = authority.add_subparsers(title="commands", metavar="COMMAND", required=True)
    serve = words.add_parser(
        "serve", help="answer requests; refuses to run as root", description=_SERVE, allow_abbrev=False
    )
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
        allow_abbrev=False,
    )
    init.add_argument("--scope", required=True, metavar="S", help="the scope that it issues for")
    init.add_argument("--user", metavar="U", default=USER, help=f"the user that it runs as ({USER})")
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
    status = words.add_parser("status", help="what the running authority says of itself", allow_abbrev=False)
    status.set_defaults(run=run_status)
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
    """Make the settings, the key and the trust in it, where they are missing.

    Raises:
        EgsError: it may not, or there is no such user.
    """
    from egs_kernel.authority.settings import ISSUER_KEY  # noqa: PLC0415 - as above
    from egs_kernel.cli.files import replace_file  # noqa: PLC0415 - as above
    from egs_kernel.trust import keys, store  # noqa: PLC0415 - as above

    store.require_scope_name(arguments.scope)
    paths, folder = Paths.from_environment(), arguments.state
    owner = _account(arguments.user)
    _own_folder(folder, owner, 0o700)
    _own_folder(paths.authority_socket.parent, owner, 0o755)
    key = folder / ISSUER_KEY
    if not key.exists():
        private, public = keys.write_pair(keys.generate(keys.Algorithm.ED25519), folder, ISSUER_KEY[:-4])
        for path in (private, public):
            os.chown(path, owner.pw_uid, owner.pw_gid)
    trusted = keys.load_public((folder / f"{ISSUER_KEY[:-4]}.pub").read_bytes(), str(key))
    arguments.config.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not arguments.config.exists():
        replace_file(arguments.config, _SETTINGS.format(scope=arguments.scope).encode())
    paths.trust.mkdir(mode=0o755, parents=True, exist_ok=True)
    if trusted.keyid not in store.TrustStore.load(paths.trust).keys:
        entry = store.TrustedKey(
            key=trusted,
            roles=frozenset({store.Role.ISSUER}),
            scopes=frozenset({arguments.scope}),
            name="egs-authority",
        )
        store.add(paths.trust, entry)
    answer = {
        "config": str(arguments.config),
        "key": str(key),
        "key_id": trusted.keyid,
        "user": arguments.user,
    }
    if arguments.json:
        print_json(answer)
    else:
        print_lines(f"{name.replace('_', ' '):8} {value}" for name, value in answer.items())
    return int(ExitCode.DONE)


def run_status(arguments: argparse.Namespace) -> int:
    """Show what the authority says of itself.

    Raises:
        Unreachable: it does not answer.
    """
    from egs_kernel.cli.asking import ask  # noqa: PLC0415 - as above

    answer = ask(Paths.from_environment(), "GET", "/v1/status")
    if arguments.json:
        print_json(answer)
    else:
        print_lines(f"{name:14} {value}" for name, value in answer.items())
    return int(ExitCode.DONE)


def _account(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError as error:
        raise UsageError(
            Reason.NOT_FOUND,
            f"this host has no user {name}",
            "systemd-sysusers makes it (systemd/sysusers.d); or: useradd --system --no-create-home egs-authority",
        ) from error


def _own_folder(folder: Path, owner: pwd.struct_passwd, mode: int) -> None:
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    try:
        shutil.chown(folder, owner.pw_uid, owner.pw_gid)
        folder.chmod(mode)
    except OSError as error:
        raise UsageError(
            Reason.NOT_PERMITTED,
            f"cannot give {folder} to {owner.pw_name}: {error.strerror}",
            "Run it as root.",
        ) from error
