"""`egs authority init`: from nothing to an authority that can be started, and, with --agent, to a policy set for it."""

from __future__ import annotations

import os
import pwd
import shutil
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egs_kernel.authority.settings import ISSUER_KEY
from egs_kernel.cli.files import inspect_program, replace_file
from egs_kernel.cli.output import print_json, print_lines
from egs_kernel.errors import ExitCode, UsageError
from egs_kernel.model import ProgramKind, Reason
from egs_kernel.paths import Paths
from egs_kernel.trust import keys, store

if TYPE_CHECKING:
    from egs_kernel.cli.files import Program
    from egs_kernel.sslib import Key

STARTER: Final = "ai-agent"
SET: Final = f"{STARTER}.json"
POLICY_KEY: Final = "policy"

_PYTHON: Final = "/usr/bin/python3"

_SETTINGS: Final = """# The authority (docs/authority.md).
default_scope = "{scope}"
valid_for = "5m"
max_valid_for = "1h"
may_see = ["group:egs-approvers"]
"""
_EGS: Final = """# docs/configuration.md
[[scope]]
name = "{scope}"
cgroup = "{cgroup}"
"""


def init(options: Namespace) -> int:
    """Make what is missing, and say what there is.

    Raises:
        EgsError: it may not, there is no such user, or what is there is wrong.
    """
    store.require_scope_name(options.scope)
    paths, owner = Paths.from_environment(), _account(options.user)
    _own_folder(options.state, owner, 0o700)
    _own_folder(paths.authority_socket.parent, owner, 0o755)
    paths.trust.mkdir(mode=0o755, parents=True, exist_ok=True)
    for folder in (paths.artifacts, paths.policy):
        folder.mkdir(mode=0o755, exist_ok=True)
    cgroup = options.cgroup or f"/egs.slice/egs-{options.scope}.slice"
    _write_once(paths.config, _EGS.format(scope=options.scope, cgroup=cgroup))
    _write_once(options.config, _SETTINGS.format(scope=options.scope))
    issuer = _pair(options.state, ISSUER_KEY.removesuffix(".key"), owner)
    _trust(paths, issuer, store.Role.ISSUER, options.scope, "egs-authority")
    answer = {"settings": str(options.config), "key": str(options.state / ISSUER_KEY), "user": options.user}
    if options.agent is not None:
        answer["policy"] = str(_policy_set(paths, options))
    if options.json:
        print_json(answer)
    else:
        print_lines(f"{name:9} {value}" for name, value in answer.items())
    return int(ExitCode.DONE)


def _policy_set(paths: Paths, options: Namespace) -> Path:
    """The starter for one agent, one script and Python as they are on this host; signed by a key of its own."""
    from egs_kernel.cli.policy.writing import sign_set, starters  # noqa: PLC0415 - Cedar is for those who write policy

    account = options.account or os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    script = inspect_program(options.agent)
    python = _python()
    folder: Path = options.out / STARTER
    starters(Namespace(name=STARTER, out=folder, json=False))
    changes = {
        "egs-agent": account,
        "/srv/agent/agent.py": str(script.path),
        "/usr/bin/python3.11": str(python.path),
        '"agents"': f'"{options.scope}"',
    }
    for path in folder.rglob("*.toml"):
        text = path.read_text()
        for old, new in changes.items():
            text = text.replace(old, new)
        path.write_text(text)
    _trust(paths, _pair(options.out, POLICY_KEY, None), store.Role.POLICY, options.scope, "policy")
    out: Path = options.out / SET
    key = str(options.out / f"{POLICY_KEY}.key")
    sign_set(Namespace(set=folder, out=out, key=[key], passphrase_file=None, json=False))
    return out


def _python() -> Program:
    """The interpreter that python3 is; one that is a script, such as pyenv's, is not it."""
    found = inspect_program(Path(shutil.which("python3") or _PYTHON))
    return found if found.kind is ProgramKind.INTERPRETER else inspect_program(Path(_PYTHON))


def _pair(folder: Path, name: str, owner: pwd.struct_passwd | None) -> Key:
    """The public half of a key pair, which is made when there is none; `owner`: whose files they are to be."""
    if not (folder / f"{name}.key").exists():
        for path in keys.write_pair(keys.generate(keys.Algorithm.ED25519), folder, name):
            if owner is not None:
                os.chown(path, owner.pw_uid, owner.pw_gid)
    public = folder / f"{name}.pub"
    return keys.load_public(public.read_bytes(), str(public))


def _trust(paths: Paths, key: Key, role: store.Role, scope: str, name: str) -> None:
    if key.keyid in store.TrustStore.load(paths.trust).keys:
        return
    entry = store.TrustedKey(key=key, roles=frozenset({role}), scopes=frozenset({scope}), name=name)
    store.add(paths.trust, entry)


def _write_once(path: Path, content: str) -> None:
    if not path.exists():
        replace_file(path, content.encode())


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
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        folder.chmod(mode)
    except OSError as error:
        raise UsageError(
            Reason.NOT_PERMITTED,
            f"cannot give {folder} to {owner.pw_name}: {error.strerror}",
            "Run it as root.",
        ) from error
