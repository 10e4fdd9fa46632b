"""One launcher, from the decision to its exec, held by ptrace where something could be taken back in between.

What a launcher installs and cannot take back (filters, no_new_privs, a Landlock domain) is attested once. For the rest
(limits, umask, folder, environment, namespaces) the daemon stays with it:

1. It is stopped at each system call. At the entry of its exec it has one thread, which is held: nothing in it can
   change or make anything any more. It is made to share its folder, umask and descriptors with nobody. Now, and not
   before, the grant is armed.
2. The kernel stops it again when the new image is there and has run nothing. What it is now is compared with what was
   signed. Any difference, and it is killed.

Should the daemon die meanwhile, the kernel kills it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from egs_kernel.constraints.attest import Before, Plan, Stopped, confirm, inspect, require_single
from egs_kernel.constraints.injection import injected, may_inject, share_nothing
from egs_kernel.constraints.proc import Status, not_attested
from egs_kernel.constraints.tracing import Pauses, Stop, Traced

if TYPE_CHECKING:
    from collections.abc import Callable

    from egs_kernel.constraints.confinement import Confinement
    from egs_kernel.model import TaskIdentity

_LONGEST_PAUSE: Final = 0.5e-3
"""A stop is noticed at most this much later than it might be; what is waited for takes a millisecond or two."""
_LET_GO_SECONDS: Final = 0.5


class Escort:
    """The calls come from the event loop; the work is done by a thread of its own, as ptrace demands.

    `close` it: with the thread's end the kernel lets go of whatever is still held.

    Args:
        pid: the launcher.
        plan: what has to hold, but for what the confinement adds.
        confinement: what is to be done to it; None: nothing. Closed with the escort.
    """

    def __init__(self, pid: int, plan: Plan, confinement: Confinement | None = None) -> None:
        self._pid = pid
        self._confinement = confinement
        self._plan = plan if confinement is None else replace(plan, parts=(*plan.parts, confinement.part))
        self._before = Before(filters=0)
        self._traced: Traced | None = None
        self._leave = threading.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="egs-escort")
        self._looked = self._thread.submit(self._look)
        self._closed = False

    @property
    def filters(self) -> int | None:
        """How many filters it has once it is attested; None: the plan has none."""
        return self._before.filters + len(self._plan.filters) if self._plan.filters else None

    @property
    def follows(self) -> bool:
        """Whether the new image is looked at."""
        return self._plan.follows

    def isolate(self) -> Future[tuple[int, ...]]:
        """Put it into namespaces of its own, if it is to have any: from now on something is done to it.

        The future is what to send to it with its steps: descriptors.
        """
        return self._thread.submit(self._isolate)

    def attest(self) -> Future[TaskIdentity]:
        """Stop it and check it. It stays stopped."""
        return self._thread.submit(self._attest)

    def conduct(self, arm: Callable[[], None]) -> Future[bool]:
        """Let it go on to its exec; call `arm`, from the thread, when it stands at its entry; check the new image.

        The future is True when the new image was found as signed, False when there was no exec. It raises Refused when
        what was found is not what was signed: then it was not armed, or the new image was killed.
        """
        return self._thread.submit(self._conduct, arm)

    def leave(self) -> None:
        """It is not waited for any more: `conduct` ends soon."""
        self._leave.set()

    def close(self) -> None:
        """Let it go, if it is still held, and end the thread. Does not wait, and does nothing again."""
        if self._closed:
            return
        self._closed = True
        self._leave.set()
        self._thread.submit(self._end)
        self._thread.shutdown(wait=False)

    # -- in the thread ---------------------------------------------------------------------------

    def _look(self) -> None:
        if self._confinement is not None:
            self._confinement.look()

    def _isolate(self) -> tuple[int, ...]:
        self._looked.result()
        if self._confinement is not None:
            self._confinement.isolate()
        self._before = Before.of(self._pid)
        return () if self._confinement is None else self._confinement.descriptors

    def _attest(self) -> TaskIdentity:
        self._traced = Traced(self._pid)
        self._traced.stop()
        return inspect(self._pid, self._plan, self._before)

    def _let_go(self) -> None:
        if self._traced is not None:
            self._traced.detach()
            self._traced = None

    def _end(self) -> None:
        self._let_go()
        if self._confinement is not None:
            self._confinement.close()

    def _conduct(self, arm: Callable[[], None]) -> bool:
        traced = self._traced
        if traced is None:
            raise not_attested(self._pid, "was not attested")
        traced.follow()
        alone = armed = False
        while True:
            traced.run()
            where = self._next_stop(traced)
            if where is Stop.EXECUTED:
                self._check_image()
                self._let_go()  # at once: the gate's event, which ends the launch, may take 20 ms
                return True
            if where is Stop.ENDED or self._leave.is_set():
                return False
            if where is Stop.CALL and armed:
                return False  # its exec failed: what it does now, nobody armed it for
            if where is not Stop.CALLS_EXEC:
                alone = False  # it may have started another since
                continue
            require_single(Stopped(self._pid, Status(self._pid), self._before))
            if alone or not may_inject():
                arm()
                armed = True
            else:
                self._set_alone(traced)  # it comes to the entry of this exec again
                alone = True

    def _set_alone(self, traced: Traced) -> None:
        with injected(self._pid, at_call=True) as process:
            share_nothing(process)
        traced.follow()

    def _check_image(self) -> None:
        try:
            confirm(self._pid, self._plan, self._before)
        except BaseException:
            os.kill(self._pid, signal.SIGKILL)  # held by us and not waited for: the number is still its own
            raise

    def _next_stop(self, traced: Traced) -> Stop:
        pauses, deadline = Pauses(_LONGEST_PAUSE), float("inf")
        while (where := traced.where()) is None:
            if self._leave.is_set() and deadline == float("inf"):
                traced.interrupt()
                deadline = time.monotonic() + _LET_GO_SECONDS
            if time.monotonic() > deadline:
                raise not_attested(self._pid, f"did not stop within {_LET_GO_SECONDS} s")
            pauses.wait()
        return where
