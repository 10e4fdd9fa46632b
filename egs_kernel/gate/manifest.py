"""What `egs gate load` loaded, as a file: whoever looks at the gate later compares with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.errors import GateError
from egs_kernel.model import Reason, Tier
from egs_kernel.ownership import read_private_file

if TYPE_CHECKING:
    from pathlib import Path

_LIMIT: Final = 256 * 1024


class DriftManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The drift programs. `missing` is why there are none although they were wanted; empty when there are."""

    abi_version: int
    programs: dict[str, str] = {}
    missing: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What was loaded: the daemon's posture compares the pinned programs with it, the monitor everything.

    `drift` None: no drift programs were wanted. `objects` are facts of every map, program and link, by pin
    (gate/inventory.py).
    """

    abi_version: int
    kernel: str
    boot_id: str
    tier: Tier
    digests: bool
    programs: dict[str, str]
    drift: DriftManifest | None = None
    objects: dict[str, str] = {}


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write it, whole or not at all."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_bytes(msgspec.json.encode(manifest))
    temporary.replace(path)


def read_manifest(path: Path) -> Manifest:
    """Read it.

    Raises:
        GateError: GATE_NOT_LOADED: there is none, or none of this version.
        UnsafePath: others could have written it.
    """
    try:
        return msgspec.json.decode(read_private_file(path, _LIMIT), type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise GateError(
            Reason.GATE_NOT_LOADED,
            f"{path} does not say what was loaded: {error}",
            "Run as root: egs gate unload && egs gate load",
        ) from error
