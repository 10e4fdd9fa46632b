"""One authority, put together: its folder, keys, record, state, desk. The edge between files and all that decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egs_kernel import __version__
from egs_kernel.artifact.statement import parse_time
from egs_kernel.audit.logkeys import LogKeys
from egs_kernel.audit.record import Record
from egs_kernel.authority.api import Answer, Status
from egs_kernel.authority.app import Api
from egs_kernel.authority.askers import proven_asker
from egs_kernel.authority.desk import Desk
from egs_kernel.authority.measuring import Measurer
from egs_kernel.authority.rules import RuleBook, Rules
from egs_kernel.authority.service import Service
from egs_kernel.authority.settings import Settings, load_settings
from egs_kernel.authority.store import Store
from egs_kernel.checks.policy_sets import authenticate_set
from egs_kernel.config import Config, load_config
from egs_kernel.errors import UsageError
from egs_kernel.identity.bundles import Bundles
from egs_kernel.model import Reason
from egs_kernel.ownership import read_private_file, require_private_folder
from egs_kernel.policy.manifest import SET_LIMIT
from egs_kernel.policy.sets import PolicySet
from egs_kernel.posture import host_id
from egs_kernel.sslib import CryptoSigner
from egs_kernel.trust.hybrid import HybridSigner
from egs_kernel.trust.passphrases import Passphrases
from egs_kernel.trust.signers import open_signer
from egs_kernel.trust.store import TrustStore

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from egs_kernel.authority.askers import Asker
    from egs_kernel.authority.desk import Session
    from egs_kernel.paths import Paths
    from egs_kernel.sslib import Signer

RECORD: Final = "record"
LOG_KEYS: Final = "log-keys"
STATE: Final = "state.sqlite"


@dataclass(frozen=True)
class Authority:
    """An authority that can be served. `reload` has its rules read again before the next request."""

    application: Starlette
    settings: Settings
    signer: Signer
    reload: Callable[[], None]


@contextmanager
def opened(
    paths: Paths,
    config: Path,
    folder: Path,
    passphrases: Passphrases,
    clock: Callable[[], float] = time.time,
) -> Iterator[Authority]:
    """The authority of this host, while this process is it.

    Args:
        paths: of the instance: trust, policy, the host's id.
        config: `authority.toml`.
        folder: the authority's own (`Paths.authority_state`).
        passphrases: for its key.
        clock: Unix seconds.

    Raises:
        EgsError: its settings, keys, trust or policy are wrong; its record is damaged or another process has it.
    """
    settings = load_settings(config)
    require_private_folder(folder)
    signer = open_issuer(settings, folder, passphrases)
    origin = f"egs-authority/{host_of(paths)[0]}/record"
    with ExitStack() as open_parts:
        keys = LogKeys.open(folder / LOG_KEYS, origin, clock)
        record = open_parts.enter_context(
            Record.open(folder / RECORD, keys, clock=lambda: int(clock() * 1e9))
        )
        store = Store.open(folder / STATE, record, settings.quotas)
        open_parts.callback(store.close)
        book = RuleBook(
            lambda: _read_rules(paths, config, datetime.fromtimestamp(clock(), UTC)),
            (paths.trust, paths.policy, paths.config_dir),
        )
        book.now()  # wrong rules end a start; later they refuse requests
        slow = not isinstance(signer, CryptoSigner | HybridSigner)
        desk = Desk(record, store, book, latest=_latest(record), slow=slow, clock=clock)
        open_parts.callback(desk.close)

        def status(session: Session) -> Answer:
            rules = session.rules
            return Status(
                name=rules.settings.name,
                version=__version__,
                host=rules.host_id,
                key_id=signer.public_key.keyid,
                default_scope=rules.settings.default_scope,
                policy_name=rules.policy.name,
                policy_version=rules.policy.version,
                policy_digest=rules.policy.digest,
                record_origin=origin,
                record_key=str(keys.listed.current),
                record_size=record.size,
            )

        bundles = Bundles(paths.bundles)

        def identify(asker: Asker, token: str) -> Asker:
            return proven_asker(
                asker, token, book.now().host_id, bundles, datetime.fromtimestamp(clock(), UTC)
            )

        api = Api(
            desk=desk,
            service=Service(signer),
            measurer=Measurer(),
            settings=settings,
            status=status,
            identify=identify,
        )
        yield Authority(api.application(), settings, signer, book.forget)


def open_issuer(settings: Settings, folder: Path, passphrases: Passphrases) -> Signer:
    """The authority's key: a file in its folder, or whatever its settings name.

    Raises:
        EgsError: it cannot be opened, or others could have read it.
    """
    where = settings.key
    return open_signer(where if ":" in where else str(folder / where), passphrases)


def host_of(paths: Paths) -> tuple[str, tuple[str, ...]]:
    """The id and the labels of this host, as egs.toml has them where there is one.

    Raises:
        EgsError: egs.toml is wrong, or the host has no id.
    """
    config = load_config(paths.config) if paths.config.exists() else Config()
    return host_id(config), config.host_labels


def _read_rules(paths: Paths, config: Path, now: datetime) -> Rules:
    name, labels = host_of(paths)
    trust = TrustStore.load(paths.trust)
    try:
        content = read_private_file(paths.policy_set, SET_LIMIT)
    except OSError as error:
        raise UsageError(
            Reason.POLICY_UNAVAILABLE,
            f"no policy set is active: {paths.policy_set}: {error.strerror}",
            "Activate one: egs policy activate FILE",
        ) from error
    return Rules(
        settings=load_settings(config),
        trust=trust,
        policy=PolicySet.of(authenticate_set(content, trust, now).manifest),
        host_id=name,
        labels=labels,
    )


def _latest(record: Record) -> float:
    """When the last entry was written, Unix seconds."""
    found = 0.0
    for recorded in record.read(max(0, record.size - 1)):
        found = parse_time(f"{recorded.time[:19]}Z").timestamp()
    return found
