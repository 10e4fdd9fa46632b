"""The log's keys: made once, for root alone, one taking over from the other; what is lost or open is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from egs_kernel.audit.checkpoint import Checkpoint, open_checkpoint
from egs_kernel.audit.logkeys import KEYS, LogKeys, read_keys
from egs_kernel.errors import EgsError
from egs_kernel.model import Reason

ORIGIN = "egs-kernel/host-1/record"
DAY = 86400


class Clock:
    """Unix seconds, as a test sets them."""

    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "log-keys"


def refusal(folder: Path, origin: str = ORIGIN) -> Reason:
    with pytest.raises(EgsError) as caught:
        LogKeys.open(folder, origin, Clock())
    assert caught.value.next_step
    return caught.value.reason


def private_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.key"))


def test_the_first_start_makes_a_key_for_root_alone(folder: Path) -> None:
    keys = LogKeys.open(folder, ORIGIN, Clock())
    (signer,) = keys.signers()
    assert signer.key == read_keys(folder).current
    assert signer.key.name == ORIGIN
    assert [path.stat().st_mode & 0o777 for path in private_files(folder)] == [0o600]
    assert (folder / KEYS).stat().st_mode & 0o777 == 0o640
    assert folder.stat().st_mode & 0o777 == 0o750
    listed = json.loads((folder / KEYS).read_text())
    assert listed == {"v": 1, "origin": ORIGIN, "keys": [{"key": str(signer.key), "since": 0, "until": None}]}


def test_the_next_start_has_the_same_key(folder: Path) -> None:
    first = LogKeys.open(folder, ORIGIN, Clock())
    assert [s.key for s in LogKeys.open(folder, ORIGIN, Clock()).signers()] == [
        s.key for s in first.signers()
    ]


def test_while_a_key_takes_over_both_sign(folder: Path) -> None:
    clock = Clock()
    keys = LogKeys.open(folder, ORIGIN, clock)
    (old,) = keys.signers()
    new = keys.rotate(4711, DAY)
    assert [s.key for s in keys.signers()] == [new, old.key]
    signed = Checkpoint(ORIGIN, 4711, bytes(32)).sign(*keys.signers())
    for known in (new, old.key):
        assert open_checkpoint(signed, ORIGIN, [known]).checkpoint.size == 4711
    found = read_keys(folder)
    assert [(key.since, key.until) for key in found.keys] == [(0, int(clock.now) + DAY), (4711, None)]
    assert found.verifiers == (old.key, new)
    assert [s.key for s in LogKeys.open(folder, ORIGIN, clock).signers()] == [new, old.key]

    clock.now += DAY
    assert len(private_files(folder)) == 2
    assert [s.key for s in keys.signers()] == [new]  # whoever signs next destroys what signs nothing any more
    assert [path.name for path in private_files(folder)] == [f"{new.key_id.hex()}.key"]
    assert read_keys(folder).verifiers == (old.key, new)


def test_a_replaced_key_that_cannot_be_destroyed_signs_nothing_and_is_named_by_the_next_start(
    folder: Path,
) -> None:
    clock = Clock()
    keys = LogKeys.open(folder, ORIGIN, clock)
    (old,) = private_files(folder)
    new = keys.rotate(7, DAY)
    old.unlink()
    old.mkdir()
    clock.now += DAY
    assert [s.key for s in keys.signers()] == [new]
    with pytest.raises(EgsError) as caught:
        LogKeys.open(folder, ORIGIN, clock)
    assert caught.value.reason is Reason.RECORD_UNAVAILABLE


def test_a_key_can_be_replaced_at_once_and_again(folder: Path) -> None:
    keys = LogKeys.open(folder, ORIGIN, Clock())
    keys.rotate(1, DAY)
    new = keys.rotate(2, 0)
    assert len(keys.signers()) == 2  # the first still has its day; the second was replaced at once
    assert keys.signers()[0].key == new
    assert len(read_keys(folder).keys) == 3


def test_a_crash_while_a_key_is_made_leaves_the_old_one(folder: Path) -> None:
    keys = LogKeys.open(folder, ORIGIN, Clock())
    (current,) = keys.signers()
    before = (folder / KEYS).read_bytes()
    keys.rotate(5, DAY)
    (folder / KEYS).write_bytes(before)  # as if the list had not been replaced any more
    assert [s.key for s in LogKeys.open(folder, ORIGIN, Clock()).signers()] == [current.key]
    assert len(private_files(folder)) == 1


def test_a_disk_that_takes_no_key_leaves_the_old_one(folder: Path) -> None:
    keys = LogKeys.open(folder, ORIGIN, Clock())
    (current,) = keys.signers()
    (folder / f"{KEYS}.new").mkdir()
    with pytest.raises(EgsError) as caught:
        keys.rotate(5, DAY)
    assert caught.value.reason is Reason.RECORD_UNAVAILABLE
    assert [s.key for s in keys.signers()] == [current.key]


def test_keys_of_another_log_are_refused(folder: Path) -> None:
    LogKeys.open(folder, ORIGIN, Clock())
    assert refusal(folder, "egs-kernel/host-2/record") is Reason.CONFIG_INVALID


@pytest.mark.parametrize("origin", ["", "two words", "a+b", "line\nline"])
def test_an_origin_that_names_no_key_is_refused(folder: Path, origin: str) -> None:
    assert refusal(folder, origin) is Reason.CONFIG_INVALID
    assert not folder.exists()


def test_a_private_key_that_is_gone_open_or_another_is_refused(folder: Path) -> None:
    LogKeys.open(folder, ORIGIN, Clock())
    (path,) = private_files(folder)
    content = path.read_bytes()
    path.chmod(0o640)
    assert refusal(folder) is Reason.PATH_UNSAFE
    path.chmod(0o600)
    path.write_bytes(b"not a key")
    assert refusal(folder) is Reason.CONFIG_INVALID
    other = folder.with_name("other")
    LogKeys.open(other, ORIGIN, Clock())
    path.write_bytes(private_files(other)[0].read_bytes())
    assert refusal(folder) is Reason.CONFIG_INVALID
    path.unlink()
    assert refusal(folder) is Reason.NOT_FOUND
    path.write_bytes(content)
    path.chmod(0o600)
    LogKeys.open(folder, ORIGIN, Clock())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"{}",
        b'{"v":1,"origin":"x","keys":[]}',
        b'{"v":2,"origin":"x","keys":[]}',
        b'{"v":1,"origin":"x","keys":[{"key":"x+00000000+AA==","since":0,"until":null}]}',
    ],
)
def test_a_damaged_list_is_refused(folder: Path, content: bytes) -> None:
    LogKeys.open(folder, ORIGIN, Clock())
    (folder / KEYS).write_bytes(content)
    assert refusal(folder) is Reason.CONFIG_INVALID


def test_a_list_that_others_could_have_written_is_refused(folder: Path) -> None:
    LogKeys.open(folder, ORIGIN, Clock())
    (folder / KEYS).chmod(0o666)
    assert refusal(folder) is Reason.PATH_UNSAFE
