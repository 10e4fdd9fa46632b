"""`/metrics`: the file that the daemon writes, as long as it is fresh."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

from starlette.responses import PlainTextResponse, Response

from egs_kernel.errors import EgsError
from egs_kernel.ownership import read_private_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
FILE_LIMIT: Final = 4 * 1024 * 1024

_TIMESTAMP: Final = re.compile(rb"^egs_snapshot_timestamp_seconds (\S+)$", re.MULTILINE)


def answer(file: Path, stale_after: float, clock: Callable[[], float]) -> Response:
    """What `/metrics` answers now: the file, or 503 and why not. Prometheus then shows the target as down.

    Args:
        file: what the daemon writes.
        stale_after: seconds after which its values are no longer served.
        clock: Unix seconds.
    """
    try:
        content = read_private_file(file, FILE_LIMIT)
    except (EgsError, OSError) as error:
        return _unavailable(f"no metrics: {error}. Is egsd running?")
    match = _TIMESTAMP.search(content)
    taken = _number(match[1]) if match else math.nan
    age = clock() - taken
    # Written so that a missing or absurd time is stale as well. From the future: the clock was set back.
    if not -stale_after <= age <= stale_after:
        return _unavailable(
            f"the metrics are {age:.0f} s old; at most {stale_after:.0f} s are served. Is egsd running?"
        )
    return Response(content, headers={"Content-Type": CONTENT_TYPE})


def _unavailable(why: str) -> Response:
    return PlainTextResponse(f"{why}\n", 503)


def _number(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
