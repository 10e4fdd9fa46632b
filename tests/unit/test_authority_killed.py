"""The authority killed at every step of a request: no artifact without its entry, no entry of one that was not decided."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import msgspec
import pytest

from egs_kernel.artifact.envelope import parse_envelope
from egs_kernel.audit.check import verify
from egs_kernel.audit.entries import Evaluated, Issuance, Submission
from egs_kernel.audit.logkeys import KeyList
from egs_kernel.errors import EgsError, Unreachable
from egs_kernel.verify import artifact_id
from tests.authorities import Home, home

# Where the process ends: a function of its own, before or after its work, with so many calls spared that a start makes.
DEATH = """
import signal
from egs_kernel import authority
from egs_kernel.audit import record as record_module
from egs_kernel.authority import app, desk, service, store
def dying(owner, name, after):
    work, left = getattr(owner, name), [{spared}]
    def dies(*arguments, **options):
        if left[0]:
            left[0] -= 1
            return work(*arguments, **options)
        if not after: os.kill(os.getpid(), signal.SIGKILL)
        result = work(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, dies)
dying({owner}, {name!r}, {after})
"""
STEPS = {
    "understood": ("app", "parse_body", True, False),
    "completed": ("service", "complete", True, False),
    "decided": ("service", "rule", True, False),
    "signed": ("service", "sign", True, False),
    "before it is recorded": ("record_module.Record", "append", False, False),
    "recorded": ("record_module.Record", "append", True, True),
    "kept": ("store.Store", "commit", True, True),
    "before it is told": ("desk", "_tell", False, True),
    "answered": ("app", "_response", True, True),
}
"""Owner and name of the function, whether after it, and whether the artifact is in the record then."""


@pytest.fixture(scope="module")
def stopped() -> Iterator[Home]:
    with home(more='[[quota]]\nartifacts = 100\nper = "1h"\n') as made:
        yield made


def issued(by: Home) -> dict[str, Issuance]:
    """Artifacts by id, out of a record that holds together: each was asked for, and permitted, right before."""
    record = by.record
    keys = msgspec.json.decode((by.paths.authority_state / "log-keys/keys.json").read_bytes(), type=KeyList)
    verify(record, keys.verifiers)
    found: dict[str, Issuance] = {}
    entries = by.entries()
    for index, entry in enumerate(entries):
        if isinstance(entry, Issuance) and entry.action == "issued":
            asked, permitted = entries[index - 2 : index]
            assert isinstance(asked, Submission)
            assert isinstance(permitted, Evaluated)
            assert asked.request == permitted.request == entry.request
            assert permitted.effect == "permit"
            assert entry.artifact_id is not None
            assert entry.envelope is not None
            assert artifact_id(parse_envelope(entry.envelope.encode())) == entry.artifact_id
            assert entry.artifact_id not in found
            found[entry.artifact_id] = entry
    return found


@pytest.mark.parametrize("step", STEPS)
def test_killed_at(step: str, stopped: Home) -> None:
    owner, name, after, recorded = STEPS[step]
    known = set(issued(stopped)) if stopped.record.exists() else set()
    if not stopped.record.exists():
        stopped.start()
        stopped.request("/bin/true", "the-first")  # so that no start appends by itself
        stopped.stop()
        known = set(issued(stopped))
    stopped.start(before=DEATH.format(owner=owner, name=name, after=after, spared=int(name == "commit")))
    with pytest.raises(Unreachable):
        stopped.request("/bin/true", step.replace(" ", "-"))
    assert stopped.process is not None
    assert stopped.process.wait(20) == -signal.SIGKILL
    stopped.process.stdout.close()  # type: ignore[union-attr] # it is a pipe
    left = set(issued(stopped)) - known
    assert len(left) == recorded
    stopped.start()
    answer = stopped.request("/bin/true", step.replace(" ", "-"))
    assert set(issued(stopped)) - known == {answer["artifactId"]}
    assert left <= {answer["artifactId"]}
    assert answer["artifact"] == issued(stopped)[answer["artifactId"]].envelope
    stopped.stop()


def test_killed_while_many_ask(stopped: Home) -> None:
    """What anybody has is in the record; and a request that was repeated after it has one artifact."""
    stopped.start()
    enough = Event()
    held: dict[str, str] = {}

    def ask(number: int) -> None:
        for count in range(200):
            key = f"{number}-{count}"
            try:
                held[key] = stopped.request("/bin/true", key)["artifactId"]
            except EgsError:
                return
            if len(held) > 40:
                enough.set()

    with ThreadPoolExecutor(8) as pool:
        for number in range(8):
            pool.submit(ask, number)
        assert enough.wait(60)
        stopped.stop(signal.SIGKILL)
    found = issued(stopped)
    assert set(held.values()) <= set(found)
    stopped.start()
    for key, artifact in list(held.items())[-5:]:
        assert stopped.request("/bin/true", key)["artifactId"] == artifact
    stopped.stop()
