"""Who executes, and where (steps 7 and 8 of verify.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from egs_kernel.checks.launch import launch_required
from egs_kernel.errors import Refused
from egs_kernel.model import HostFacts, Intent, Reason

if TYPE_CHECKING:
    from egs_kernel.artifact.statement import Identity


def check_identity(identity: Identity, intent: Intent, host: HostFacts) -> int | None:
    """The uid that the gate is to require: the signed one, else the asker's; raise when it does not fit."""
    required = _required_uid(identity, host)
    standing = intent.argv is None
    if standing:
        if identity.groups or identity.spiffe_id is not None or identity.unit is not None:
            raise launch_required("groups, units and SPIFFE ids are checked at a launch")
        return required
    if required is not None and intent.uid != required:
        raise _identity_mismatch(f"it is for uid {required}, asked for by uid {intent.uid}")
    for group in identity.groups:
        gid = host.group_ids.get(group) if isinstance(group, str) else group
        if gid is None or gid not in intent.groups:
            raise _identity_mismatch(f"it is for members of group {group}")
    if identity.spiffe_id is not None and identity.spiffe_id != intent.spiffe_id:
        shown = intent.spiffe_id or "nobody who showed an SVID (egs run --svid FILE)"
        raise _identity_mismatch(f"it is for {identity.spiffe_id}, asked for by {shown}")
    if identity.unit is not None and identity.unit != intent.unit:
        raise _identity_mismatch(f"it is for the unit {identity.unit}, asked for in {intent.unit or 'none'}")
    return intent.uid if required is None else required


def _required_uid(identity: Identity, host: HostFacts) -> int | None:
    if identity.user is None:
        return identity.uid
    uid = host.users.get(identity.user)
    if uid is None:
        raise _identity_mismatch(f"it is for the user {identity.user!r}, whom this host does not know")
    if identity.uid not in (None, uid):
        raise _identity_mismatch(f"the user {identity.user!r} has uid {uid} here, not {identity.uid}")
    return uid


def _identity_mismatch(message: str) -> Refused:
    return Refused(
        Reason.IDENTITY_MISMATCH, message, "Run as the authorized identity, or have one issued for this one."
    )


def check_host(identity: Identity, host: HostFacts) -> None:
    """Raise unless this host, by its id or its key's, is one of those named, and carries every label."""
    if identity.hosts and not {host.host_id, host.host_key} & set(identity.hosts):
        raise Refused(
            Reason.HOST_MISMATCH,
            f"it is for other hosts than {host.host_id} (key {host.host_key[:16] or 'none'})",
            f"Have it issued with --host {host.host_id}",
        )
    if missing := set(identity.host_labels) - host.labels:
        raise Refused(
            Reason.HOST_MISMATCH,
            f"this host lacks the label {', '.join(sorted(missing))}",
            "Run it on a host that has it.",
        )
