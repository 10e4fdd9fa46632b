"""Who asks: as the kernel says on the Unix socket, and a verified certificate over HTTPS. Never as the message says."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from egs_kernel.artifact.statement import parse_time
from egs_kernel.errors import Refused
from egs_kernel.identity.jwt_svid import audience_of
from egs_kernel.identity.principal import BearerToken, resolve
from egs_kernel.identity.units import unit_of
from egs_kernel.identity.x509_svid import claimed_svid, verify_x509_svid
from egs_kernel.model import Reason
from egs_kernel.peers import peer_of
from egs_kernel.processes import cgroup_of

if TYPE_CHECKING:
    import socket
    from datetime import datetime

    from egs_kernel.authority.store import Known
    from egs_kernel.identity.bundles import Bundles
    from egs_kernel.peers import Peer


@dataclass(frozen=True, kw_only=True)
class Asker:
    """A principal. `uid` None: it asked over HTTPS, by a certificate; else `unit` is its systemd unit.

    `spiffe_id` was proven by an SVID that is valid until before `expires`; `host_key` is the id of the key by which its host was.
    """

    principal: str
    name: str
    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    groups: tuple[str, ...] = ()
    unit: str | None = None
    spiffe_id: str | None = None
    expires: datetime | None = None
    host_key: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is a process of this host."""
        return self.uid is not None

    def is_one_of(self, names: frozenset[str]) -> bool:
        """Whether it, or a group of its, is named; root of this host always is."""
        return (
            self.uid == 0
            or self.principal in names
            or any(f"group:{group}" in names for group in self.groups)
        )


def local_asker(connection: socket.socket) -> Asker:
    """The user of the process that connected a Unix socket.

    Raises:
        Refused: it has gone, or it lives in a pid namespace that cannot be seen.
    """
    with peer_of(connection) as peer:
        unit = _unit_of(peer)
    name = _user_name(peer.uid)
    return Asker(
        principal=f"user:{name}",
        name=name,
        uid=peer.uid,
        gid=peer.gid,
        pid=peer.task.pid,
        groups=tuple(sorted(_group_name(gid) for gid in peer.groups)),
        unit=unit,
    )


def asker_again(known: Known) -> Asker:
    """Whoever asked earlier, with the groups of now."""
    _, _, name = known.principal.partition(":")
    expires = None if known.svid_expires is None else parse_time(known.svid_expires)
    if known.uid is None or known.gid is None:
        return Asker(
            principal=known.principal,
            name=name,
            spiffe_id=known.spiffe_id,
            expires=expires,
            host_key=known.host_key,
        )
    groups = os.getgrouplist(name, known.gid)
    return Asker(
        principal=known.principal,
        name=name,
        uid=known.uid,
        gid=known.gid,
        groups=tuple(sorted(_group_name(group) for group in groups)),
        unit=known.unit,
        spiffe_id=known.spiffe_id,
        expires=expires,
        host_key=known.host_key,
    )


def proven_asker(asker: Asker, token: str, host_id: str, bundles: Bundles, now: datetime) -> Asker:
    """A process of this host that shows a JWT-SVID: as its user, and as that workload.

    Raises:
        EgsError: the token proves nothing, or the asker has shown a certificate already.
    """
    if not asker.is_local:
        raise Refused(
            Reason.NOT_PERMITTED,
            "a client with a certificate shows a token as well",
            "Over HTTPS the certificate says which workload asks.",
        )
    found = resolve(BearerToken(token, audience_of(host_id)), bundles, now)
    return replace(asker, spiffe_id=found.spiffe_id, expires=found.expires)


def certified_asker(certificate: bytes | None, bundles: Bundles | None, now: datetime) -> Asker:
    """The workload whose X.509-SVID a client showed, with the key to it.

    Args:
        certificate: DER, of a connection whose handshake verified it.
        bundles: who may sign for which trust domain; None: whoever signed it may sign for all.
        now: an aware time.

    Raises:
        EgsError: it has no SPIFFE id, or no authority of its trust domain signed it.
    """
    if certificate is None:
        raise Refused(
            Reason.NOT_PERMITTED,
            "the client showed no certificate",
            "Ask with an X.509-SVID of the workload.",
        )
    svid = claimed_svid(certificate) if bundles is None else verify_x509_svid((certificate,), bundles, now)
    name = str(svid.spiffe_id)
    return Asker(principal=f"workload:{name}", name=name, spiffe_id=name, expires=svid.expires)


def _unit_of(peer: Peer) -> str | None:
    """Its unit; what was read is the peer's, and no successor's, if it is alive afterwards."""
    try:
        unit = unit_of(cgroup_of(peer.task.pid))
    except ProcessLookupError:
        unit = None
    if not peer.alive():
        raise Refused(Reason.LAUNCHER_LOST, "the asking process has gone")
    return unit


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
