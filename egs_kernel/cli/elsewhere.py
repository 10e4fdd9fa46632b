"""Which authority is asked: the one that options name, the one of egs.toml, or this host's own. And `egs run`, when it asks."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from egs_kernel.artifact.statement import format_time
from egs_kernel.cli.asking import Remote, ask
from egs_kernel.cli.intended import intent_of, random_key
from egs_kernel.config import Config, load_config
from egs_kernel.errors import EgsError, ExitCode, Refused, Unreachable, UsageError
from egs_kernel.launch import Stop, read_svid
from egs_kernel.model import Reason
from egs_kernel.paths import Paths
from egs_kernel.posture import host_id

if TYPE_CHECKING:
    import argparse

    from egs_kernel.config import AuthorityConfig


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what names an authority on another host."""
    group = parser.add_argument_group("an authority on another host, instead of egs.toml's or this host's")
    group.add_argument("--authority", metavar="URL", help="https://HOST:PORT")
    group.add_argument("--certificate", type=Path, metavar="FILE", help="this workload's X.509-SVID, PEM")
    group.add_argument("--certificate-key", type=Path, metavar="FILE", help="its private key, PEM")
    group.add_argument("--ca", type=Path, metavar="FILE", help="whose certificate the authority has, PEM")


def remote_of(options: argparse.Namespace) -> Remote | None:
    """The authority to ask; None: this host's own.

    Raises:
        UsageError: some of the options are missing, or egs.toml is wrong.
    """
    given = (options.certificate, options.certificate_key, options.ca)
    if options.authority is None and not any(given):
        named = config_of(Paths.from_environment()).authority
        return None if named is None else _remote(named)
    if options.authority is None or not all(given):
        raise UsageError(
            Reason.USAGE,
            "--authority, --certificate, --certificate-key and --ca belong together",
            "Give all of them, or none for the authority of egs.toml, or this host's.",
        )
    return Remote(options.authority, *given)


def host_here() -> str:
    """This host's id, which another host's authority has to be told.

    Raises:
        EgsError: egs.toml is wrong, or there is no id.
    """
    return host_id(config_of(Paths.from_environment()))


def config_of(paths: Paths) -> Config:
    """What egs.toml says; where there is none, or not for this user to read, what holds without it.

    Raises:
        UsageError: it is unsafe, or wrong.
    """
    return load_config(paths.config) if os.access(paths.config, os.R_OK) else Config()


def proven_by_host(paths: Paths, body: dict[str, Any]) -> dict[str, Any]:
    """The body of a request with what this host signs of it; as it is where no egsd runs, or where no intent is.

    Raises:
        EgsError: egsd refused.
    """
    from egs_kernel.authority.intent import (  # noqa: PLC0415 - for those alone who ask elsewhere
        IntentDocument,
        encode_intent,
        intent_digest,
    )
    from egs_kernel.daemon import client, protocol  # noqa: PLC0415 - as above

    try:
        digest = intent_digest(encode_intent(msgspec.convert(body["intent"], IntentDocument)))
        request = protocol.HostStatementRequest(intent_digest=digest)
        answer = client.ask(paths, request, protocol.HostStatementAnswer)
    except (Unreachable, ValueError):  # the authority says whether it takes that
        return body
    return body | {"hostStatement": answer.statement}


def authorized(program: str, argv: list[str], svid: str | None = None) -> tuple[bytes, str | None] | None:
    """For `egs run`: the artifact that an authority gives for this launch, and the SVID to show with it; None: there is no authority.

    Raises:
        Stop: it refused, or people have to approve it first.
    """
    paths = Paths.from_environment()
    try:
        config = config_of(paths)
        if config.authority is None:
            return _from_here(paths, program, argv, svid) if paths.authority_socket.exists() else None
        return _from_elsewhere(paths, config, program, argv, svid)
    except EgsError as error:
        code = 4 if error.exit_code is ExitCode.UNREACHABLE else 126
        said = f"refused: {error}" + (f"\n{error.next_step}" if error.next_step else "")
        raise Stop(code, said) from error


def waits(answer: dict[str, Any]) -> Refused:
    """The refusal that a wait for approvals is, until they are there."""
    there = sum(vote["action"] == "approved" for vote in answer.get("approvals", ()))
    return Refused(
        Reason.APPROVAL_REQUIRED,
        f"request {answer['request']} waits for approvals until {answer['until']}: {there} of {answer['required']} are there",
        f"egs approve {answer['request']} --key N.key, then: egs request --id {answer['request']} --out FILE",
    )


def _from_here(paths: Paths, program: str, argv: list[str], svid: str | None) -> tuple[bytes, str | None]:
    body = _body(intent_of(program, argv))
    return _artifact(ask(paths, "POST", "/v1/requests", body, key=random_key(), svid=svid)), svid


def _from_elsewhere(
    paths: Paths, config: Config, program: str, argv: list[str], svid: str | None
) -> tuple[bytes, str | None]:
    """The certificate says there who asks, and a JWT-SVID says it to egsd: each finds out for itself."""
    named = config.authority
    assert named is not None  # noqa: S101 - for the type checker
    if svid is None and named.svid is not None:
        svid = read_svid(named.svid)
    if svid is None:
        raise UsageError(
            Reason.USAGE,
            f"what {named.url} issues is for a workload, and egsd was shown no SVID of one",
            "egs run --svid FILE; or name the file as svid in [authority] of egs.toml (docs/identity.md).",
        )
    intent = intent_of(program, argv) | {"host": host_id(config), "uid": os.geteuid()}
    body, remote = proven_by_host(paths, _body(intent)), _remote(named)
    return _artifact(ask(paths, "POST", "/v1/requests", body, key=random_key(), remote=remote)), svid


def _body(intent: dict[str, Any]) -> dict[str, Any]:
    return {"intent": intent | {"uses": 1}, "askedAt": format_time(datetime.now(UTC))}


def _artifact(answer: dict[str, Any]) -> bytes:
    if answer.get("state") == "pending":
        raise waits(answer)
    return str(answer["artifact"]).encode()


def _remote(named: AuthorityConfig) -> Remote:
    return Remote(named.url, Path(named.certificate), Path(named.key), Path(named.ca))
