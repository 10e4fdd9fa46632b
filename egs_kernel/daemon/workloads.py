"""Which SPIFFE workload launches: by the JWT-SVID that comes with the request."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from egs_kernel.identity.bundles import Bundles


class Workloads:
    """Verifies SVIDs against the host's trust bundles. What that takes, 4 MB, is imported with the first one."""

    def __init__(self, folder: Path, host_id: str) -> None:
        self._folder = folder
        self._host_id = host_id
        self._bundles: Bundles | None = None

    def identify(self, token: str, now: datetime) -> str:
        """The SPIFFE id that a JWT-SVID proves. Blocks: it may read a bundle.

        Raises:
            Refused: SVID_INVALID, SVID_EXPIRED or BUNDLE_UNTRUSTED.
            UsageError: the bundle of its trust domain is malformed or unsafe.
        """
        from egs_kernel.identity.bundles import Bundles  # noqa: PLC0415 - of no use to a daemon without SVIDs
        from egs_kernel.identity.jwt_svid import audience_of, verify_jwt_svid  # noqa: PLC0415 - as above

        if self._bundles is None:
            self._bundles = Bundles(self._folder)
        return str(verify_jwt_svid(token, audience_of(self._host_id), self._bundles, now).spiffe_id)
