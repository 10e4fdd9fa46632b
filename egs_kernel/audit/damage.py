"""The error for a record that is not what was written."""

from __future__ import annotations

from egs_kernel.errors import RecordError
from egs_kernel.model import Reason


def corrupt(where: str, problem: str) -> RecordError:
    """The error for a record that is not what was written. `where` names the place, such as "entry 7" or "tile/0/000"."""
    return RecordError(
        Reason.RECORD_CORRUPT,
        f"the record does not verify at {where}: {problem}",
        "Nothing is authorized until this is resolved: keep a copy of the record's folder as evidence, "
        "run `egs audit verify`, then restore its last good copy or start a new record (docs/record.md).",
    )
