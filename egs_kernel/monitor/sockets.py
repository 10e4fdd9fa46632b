"""What a process listens on, and what it is connected to: its socket descriptors, looked up in its own network namespace."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egs_kernel.drift.states import Opened

if TYPE_CHECKING:
    from egs_kernel.monitor.opened import Process

_LISTENS: Final = "0A"
_ESTABLISHED: Final = "01"
_UNCONNECTED: Final = "07"
_SOCKET: Final = re.compile(r"socket:\[([0-9]+)\]")
_EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")

_Entry = tuple[Opened, int]
"""A socket and its own port."""


class Sockets:
    """Sockets by process. The kernel's tables of a network namespace are read once in each sweep, by whom of it comes first."""

    def __init__(self) -> None:
        self._tables: dict[str, dict[int, _Entry]] = {}

    def refresh(self) -> None:
        """Forget what was read."""
        self._tables.clear()

    def of(self, process: Process) -> tuple[Opened, ...]:
        """What a process has. A connection that came in by a port that somebody listens on is that port's affair.

        Raises:
            ProcessLookupError: it is gone.
        """
        inodes = self._inodes(process)
        if not inodes:
            return ()
        namespace = process.link("ns/net")
        table = self._tables.get(namespace)
        if table is None or not inodes <= table.keys():  # the kernel has made some since
            table = self._tables[namespace] = _read(process)
        listening = {port for opened, port in table.values() if opened.listens}
        found = [table[inode] for inode in inodes if inode in table]
        return tuple(opened for opened, port in found if opened.listens or port not in listening)

    def _inodes(self, process: Process) -> set[int]:
        try:
            folder = os.open("fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=process.folder)
        except OSError as error:
            raise ProcessLookupError(f"process {process.task.pid} is gone") from error
        try:
            with os.scandir(folder) as entries:
                links = [process.link(f"fd/{entry.name}") for entry in entries]
            return {int(match[1]) for match in map(_SOCKET.fullmatch, links) if match}
        finally:
            os.close(folder)


def _read(process: Process) -> dict[int, _Entry]:
    table: dict[int, _Entry] = {}
    first_ephemeral = _first_ephemeral()
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        for line in process.read(f"net/{kind}").decode().splitlines()[1:]:
            _number, local, remote, state, *_rest = line.split()
            inode = int(line.split()[9])
            own, other = (int(address.rpartition(":")[2], 16) for address in (local, remote))
            protocol = kind.removesuffix("6")
            # A UDP socket that only sends is bound to a port of the kernel's choice.
            bound = protocol == "udp" and state == _UNCONNECTED and 0 < own < first_ephemeral
            if state == _LISTENS or bound:
                table[inode] = Opened(port=own, listens=True, protocol=protocol), own
            elif state == _ESTABLISHED:
                table[inode] = Opened(port=other, listens=False, protocol=protocol), own
    return table


def _first_ephemeral() -> int:
    try:
        return int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError):
        return 32768
