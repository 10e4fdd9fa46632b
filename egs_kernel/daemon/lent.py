"""What the daemon does to the gate for the monitor: while a gate is sealed, nobody but the daemon gets at it.

No more than a monitor needs, and nothing by which anybody would be authorized: whom the gate governs, which file a
descriptor is, and the marks of a response.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from egs_kernel.daemon import protocol
from egs_kernel.gate.abi import Restrain
from egs_kernel.gate.grants import QUARANTINED

if TYPE_CHECKING:
    from egs_kernel.daemon.server import Connection
    from egs_kernel.gate.pins import Gate

PAGE: Final = 2048
"""Processes in one answer."""
_HOW: Final = {
    "quarantine": Restrain.QUARANTINE,
    "suspend": Restrain.SUSPEND,
    "resume": Restrain.RESUME,
}


def lend(gate: Gate, request: protocol.LentRequest, connection: Connection) -> protocol.Answer:
    """Do it. Only root may ask.

    Raises:
        Refused: the message lacks its descriptor.
        EgsError: the gate failed.
    """
    match request:
        case protocol.GovernedRequest(pid=0, after=after):
            return _governed(gate, after)
        case protocol.GovernedRequest(pid=pid):
            task = gate.governed_task(pid)
            return protocol.GovernedAnswer(tasks=() if task is None else (task,))
        case protocol.IdentifyRequest():
            return _identify(gate, connection)
        case protocol.RestrainRequest():
            how = _HOW[request.how]
            key = QUARANTINED if how is Restrain.QUARANTINE else 0
            return protocol.RestrainAnswer(done=gate.restrain(request.pid, request.execution, how, key))
        case protocol.GuardRequest():
            return protocol.RestrainAnswer(done=gate.guard())


def _governed(gate: Gate, after: int) -> protocol.GovernedAnswer:
    tasks = sorted((task for task in gate.governed() if task.pid > after), key=lambda task: task.pid)
    return protocol.GovernedAnswer(tasks=tuple(tasks[:PAGE]), more=len(tasks) > PAGE)


def _identify(gate: Gate, connection: Connection) -> protocol.IdentityAnswer:
    descriptor = connection.take_descriptor()
    if descriptor is None:
        raise protocol.protocol_error("what is to be identified comes as a descriptor")
    try:
        return protocol.IdentityAnswer(file=gate.identify(descriptor))
    finally:
        os.close(descriptor)
