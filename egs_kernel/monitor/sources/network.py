"""The network of the monitor's namespace: interfaces, addresses, routes; told by netlink, read by pyroute2.

A message says that something changed; what it is now is asked for. What came and went between two looks is told by its
messages, as no look can see it.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink import rtnl
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from egs_kernel.drift.observations import HostEvent, HostState, Lost
from egs_kernel.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from egs_kernel.drift.observations import Observation

_GROUPS: Final = (
    rtnl.RTMGRP_LINK
    | rtnl.RTMGRP_IPV4_IFADDR
    | rtnl.RTMGRP_IPV6_IFADDR
    | rtnl.RTMGRP_IPV4_ROUTE
    | rtnl.RTMGRP_IPV6_ROUTE
)
_DATAGRAM: Final = 256 * 1024
_LOCAL_TABLE: Final = 255
"""The kernel's own: it follows from the addresses."""
_CLONED: Final = 0x200
"""RTM_F_CLONED: a route that is remembered for one destination."""
_FLAGS: Final = {0x1: "up", 0x100: "promiscuous"}
_EVENTS: Final = {
    "RTM_NEWLINK": Finding.INTERFACE_CHANGED,
    "RTM_DELLINK": Finding.INTERFACE_CHANGED,
    "RTM_NEWADDR": Finding.ADDRESS_CHANGED,
    "RTM_DELADDR": Finding.ADDRESS_CHANGED,
    "RTM_NEWROUTE": Finding.ROUTE_CHANGED,
    "RTM_DELROUTE": Finding.ROUTE_CHANGED,
}
_Facts = dict[Finding, dict[str, str]]


class Network:
    """Interfaces, addresses and routes of the network namespace that it is made in.

    Raises:
        OSError: the kernel gives no netlink socket.
    """

    name = "netlink"

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._socket.bind((0, _GROUPS))
        self._marshal = MarshalRtnl()
        self._ask = IPRoute()
        self._names: dict[int, str] = {}
        self._known = self._look()

    def fileno(self) -> int:
        """Readable when something has changed."""
        return self._socket.fileno()

    def read(self) -> Iterator[Observation]:
        """What changed, and what came and went meanwhile."""
        removed: dict[tuple[Finding, str], str] = {}
        touched: dict[Finding, None] = {}
        lost = 0
        names = dict(self._names)
        while True:
            try:
                data = self._socket.recv(_DATAGRAM)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: messages were dropped
                lost += 1
                continue
            for message in self._marshal.parse(data):
                finding = _EVENTS.get(message["event"])
                fact = None if finding is None else _fact(finding, message, names)
                if finding is None or fact is None:
                    continue
                touched[finding] = None
                if message["event"].startswith("RTM_DEL"):
                    removed[finding, fact[0]] = fact[1]
        yield from self._told(list(_KINDS) if lost else list(touched), removed, lost)

    def _told(
        self, touched: list[Finding], removed: Mapping[tuple[Finding, str], str], lost: int
    ) -> Iterator[Observation]:
        now, before, found = _now(), self._known, self._look()
        self._known = found
        if lost:
            yield Lost(source=self.name, time=now, count=lost)
        for finding in touched:
            if found[finding] != before[finding]:
                yield HostState(source=self.name, time=now, suspicion=finding, facts=found[finding])
        for (finding, subject), fact in removed.items():
            if found[finding].get(subject) == before[finding].get(subject):
                yield HostEvent(
                    source=self.name,
                    time=now,
                    suspicion=finding,
                    subject=subject,
                    was=fact,
                    now="removed since",
                )

    def sweep(self) -> Iterator[Observation]:
        """All there is."""
        self._known = self._look()
        for finding, facts in self._known.items():
            yield HostState(source=self.name, time=_now(), suspicion=finding, facts=facts)

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()
        self._ask.close()

    def _look(self) -> _Facts:
        links = list(self._ask.get_links())
        self._names = {link["index"]: str(link.get_attr("IFLA_IFNAME")) for link in links}
        dumps = {
            Finding.INTERFACE_CHANGED: links,
            Finding.ADDRESS_CHANGED: self._ask.get_addr(),
            Finding.ROUTE_CHANGED: self._ask.get_routes(),
        }
        found = {}
        for finding, messages in dumps.items():
            facts = (_fact(finding, message, self._names) for message in messages)
            found[finding] = dict(sorted(fact for fact in facts if fact is not None))
        return found


_KINDS: Final = (Finding.INTERFACE_CHANGED, Finding.ADDRESS_CHANGED, Finding.ROUTE_CHANGED)


def _fact(finding: Finding, message: Any, names: dict[int, str]) -> tuple[str, str] | None:
    """What a message is about, and what it says of that; None: of nothing that somebody sets. Notes names."""
    if finding is Finding.INTERFACE_CHANGED:
        names.setdefault(message["index"], str(message.get_attr("IFLA_IFNAME")))
        return _link(message, names)
    if finding is Finding.ADDRESS_CHANGED:
        place = names.get(message["index"], f"#{message['index']}")
        address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        return f"{place} {address}/{message['prefixlen']}", f"scope {message['scope']}"
    return _route(message, names)


def _link(message: Any, names: Mapping[int, str]) -> tuple[str, str]:
    flags = [word for bit, word in _FLAGS.items() if message["flags"] & bit]
    master = message.get_attr("IFLA_MASTER")
    parts = [
        f"number {message['index']}",
        message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or "",
        message.get_attr("IFLA_ADDRESS") or "",
        f"mtu {message.get_attr('IFLA_MTU')}",
        "" if master is None else f"part of {names.get(master, f'#{master}')}",
        *flags,
    ]
    return str(message.get_attr("IFLA_IFNAME")), " ".join(part for part in parts if part)


def _route(message: Any, names: Mapping[int, str]) -> tuple[str, str] | None:
    table = message.get_attr("RTA_TABLE") or message["table"]
    if table == _LOCAL_TABLE or message["flags"] & _CLONED:
        return None
    target = message.get_attr("RTA_DST") or ("::" if message["family"] == socket.AF_INET6 else "0.0.0.0")  # noqa: S104
    subject = f"{target}/{message['dst_len']} metric {message.get_attr('RTA_PRIORITY') or 0} table {table}"
    hops = message.get_attr("RTA_MULTIPATH") or [message]
    ways = [_way(hop, names) for hop in hops]
    return subject, f"{', '.join(sorted(ways))} type {message['type']}"


def _way(hop: Any, names: Mapping[int, str]) -> str:
    gateway = hop.get_attr("RTA_GATEWAY") or hop.get_attr("RTA_VIA")
    number = hop.get_attr("RTA_OIF") or hop.get("oif")
    place = "" if number is None else f" by {names.get(number, f'#{number}')}"
    return f"via {gateway or 'nothing'}{place}"


def _now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
