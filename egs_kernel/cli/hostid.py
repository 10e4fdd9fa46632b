"""What `egs doctor` says of the host's identity, whether or not egsd runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from egs_kernel.config import Config, parse_config, read_config
from egs_kernel.errors import EgsError
from egs_kernel.hostkey import read_host_key
from egs_kernel.posture import host_id

if TYPE_CHECKING:
    from egs_kernel.paths import Paths


def describe_host(paths: Paths) -> dict[str, str | None]:
    """Its id, its key's id (None: not made yet), and what is wrong with them (None: nothing)."""
    found: dict[str, str | None] = {"id": None, "key": None, "problem": None}
    try:
        config = (
            parse_config(read_config(paths.config), str(paths.config)) if paths.config.exists() else Config()
        )
        found["id"] = known = host_id(config)
        found["key"] = read_host_key(paths.host_keys, known)
    except (EgsError, PermissionError) as error:
        found["problem"] = str(error)
    return found


def host_line(host: dict[str, str | None]) -> str:
    """The same in a line."""
    if host["problem"] is not None:
        return f"Host {host['id'] or 'without an id'}: {host['problem']}"
    key = "no key yet: egsd makes it at its first start" if host["key"] is None else f"key {host['key']}"
    return f"Host {host['id']}, {key}"
