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

STEPS = {
    "understood": ("app", "parse_body", True, False),
    "completed": ("service", "complete", True, False),
    "decided": ("service", "rule", True, False),
    "signed": ("service", "sign", True, False),
    "unrecorded": ("record_module.Record", "append", False, False),
    "recorded": ("record_module.Record", "append", True, True),
    "kept": ("store.Store", "commit", True, True),
    "untold": ("desk", "_tell", False, True),
    "answered": ("app", "_response", True, True),
}
"""Owner and name of the function at which the process ends, whether after it, and whether the artifact is recorded then."""
DEATHS = "".join(
    f"dying({owner}, {name!r}, {after}, {step!r})\n" for step, (owner, name, after, _) in STEPS.items()
)
# It ends where a file says, so that one process serves after a death, and dies the next one.
DYING = f"""
import signal
from pathlib import Path
from egs_kernel.audit import record as record_module
from egs_kernel.authority import app, desk, service, store
here = Path(os.environ["EGS_ROOT"]) / "dies-at"
def dying(owner, name, after, step):
    work = getattr(owner, name)
    def end():
        if here.exists() and here.read_text() == step:
            os.kill(os.getpid(), signal.SIGKILL)
    def dies(*arguments, **options):
        if not after: end()
        result = work(*arguments, **options)
        if after: end()
        return result
    setattr(owner, name, dies)
{DEATHS}"""


@pytest.fixture(scope="module")
def served() -> Iterator[Home]:
    with home(more='[[quota]]\nartifacts = 100\nper = "1h"\n') as made:
        made.start(before=DYING)
        made.request("/bin/true", "the-first")
        made.stop()  # what is durable is signed a moment after it is told; at its end at once
        made.start(before=DYING)
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
def test_killed_at(step: str, served: Home) -> None:
    known, place = set(issued(served)), served.root / "dies-at"
    place.write_text(step)
    with pytest.raises(Unreachable):
        served.request("/bin/true", step)
    assert served.stop() == -signal.SIGKILL
    left = set(issued(served)) - known
    assert len(left) == STEPS[step][3]
    place.unlink()
    served.start(before=DYING)
    answer = served.request("/bin/true", step)
    assert set(issued(served)) - known == {answer["artifactId"]}
    assert left <= {answer["artifactId"]}
    assert answer["artifact"] == issued(served)[answer["artifactId"]].envelope


def test_killed_while_many_ask(served: Home) -> None:
    """What anybody has is in the record; and a request that was repeated after it has one artifact."""
    enough = Event()
    held: dict[str, str] = {}

    def ask(number: int) -> None:
        for count in range(200):
            key = f"{number}-{count}"
            try:
                held[key] = served.request("/bin/true", key)["artifactId"]
            except EgsError:
                return
            if len(held) > 40:
                enough.set()

    with ThreadPoolExecutor(8) as pool:
        for number in range(8):
            pool.submit(ask, number)
        assert enough.wait(60)
        served.stop(signal.SIGKILL)
    found = issued(served)
    assert set(held.values()) <= set(found)
    served.start()
    for key, artifact in list(held.items())[-5:]:
        assert served.request("/bin/true", key)["artifactId"] == artifact
