"""A key's successor: nothing stops, nothing lasts longer than said, and nobody gets a second vote."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from egs_kernel.artifact.statement import format_time
from egs_kernel.cli.main import run
from egs_kernel.errors import ExitCode, Refused, UsageError
from egs_kernel.maintenance import SCOPE, require_liftable
from egs_kernel.model import Reason
from egs_kernel.trust import rotation, store
from egs_kernel.trust.keys import Algorithm, generate, write_public
from egs_kernel.trust.store import Role, TrustStore
from egs_kernel.verify import authenticate
from tests.unit import issuing
from tests.unit.issuing import ISSUER, NOW, SECOND, STRANGER, signed, statement, trusted

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from egs_kernel.sslib import Signer

NEW = generate(Algorithm.HYBRID)
START = NOW + timedelta(hours=1)
OVERLAP = timedelta(days=7)
END = START + OVERLAP
OLD_ID, NEW_ID = ISSUER.public_key.keyid, NEW.public_key.keyid


def rotated(**thresholds: int) -> TrustStore:
    trust = issuing.store(trusted(ISSUER), trusted(SECOND), **thresholds)
    new, old = rotation.succeed(trust, OLD_ID, NEW.public_key, START, OVERLAP)
    return TrustStore({**trust.keys, new.keyid: new, old.keyid: old}, trust.thresholds)


def artifact(now: datetime, *signers: Signer) -> bytes:
    times = {
        "issuedAt": format_time(now),
        "notBefore": format_time(now),
        "notAfter": format_time(now + timedelta(days=30)),
    }
    return signed(statement(times), *signers)


def verdict(content: bytes, trust: TrustStore, now: datetime) -> Reason:
    try:
        authenticate(content, trust, now)
    except Refused as error:
        return error.reason
    return Reason.AUTHORIZED


def test_the_drill() -> None:
    """docs/keys.md: what the old key signed verifies until the overlap ends, and what the new one signs from its start on."""
    trust = rotated()
    old, new = artifact(NOW, ISSUER), artifact(NOW, NEW)
    second = timedelta(seconds=1)
    expected = {
        NOW: (Reason.AUTHORIZED, Reason.KEY_NOT_VALID_NOW),
        START - second: (Reason.AUTHORIZED, Reason.KEY_NOT_VALID_NOW),
        START: (Reason.AUTHORIZED, Reason.AUTHORIZED),
        END - second: (Reason.AUTHORIZED, Reason.AUTHORIZED),
        END: (Reason.KEY_NOT_VALID_NOW, Reason.AUTHORIZED),
        END + timedelta(days=1): (Reason.KEY_NOT_VALID_NOW, Reason.AUTHORIZED),
    }
    for now, verdicts in expected.items():
        assert (verdict(old, trust, now), verdict(new, trust, now)) == verdicts, now


def test_which_key_signs_now() -> None:
    trust = rotated()
    signs = [
        (rotation.turn_of(trust, OLD_ID, now).signs, rotation.turn_of(trust, NEW_ID, now).signs)
        for now in (NOW, START, END)
    ]
    assert signs == [(True, False), (False, True), (False, True)]
    turn = rotation.turn_of(trust, OLD_ID, NOW)
    assert (turn.successor, turn.overlap) == (NEW_ID, (START, END))


def test_a_successor_may_do_what_the_key_before_it_may_and_no_more() -> None:
    said = {
        "roles": frozenset({Role.ISSUER, Role.REVOKER}),
        "scopes": frozenset({"agents", "ci"}),
        "name": "desk",
    }
    new, _old = rotation.succeed(
        issuing.store(trusted(ISSUER, **said)), OLD_ID, NEW.public_key, START, OVERLAP
    )
    assert {name: getattr(new, name) for name in said} == said


def test_a_successor_that_is_revoked_takes_nobodys_turn() -> None:
    trust = rotated()
    new, old = trust.keys[NEW_ID], trust.keys[OLD_ID]
    without = TrustStore({OLD_ID: old, NEW_ID: replace(new, revoked=START)})
    assert rotation.turn_of(without, OLD_ID, START) == rotation.Turn(signs=True, successor=None, overlap=None)
    gap = TrustStore({OLD_ID: replace(old, not_after=START), NEW_ID: new})
    turn = rotation.turn_of(gap, OLD_ID, NOW)
    assert (turn.successor, turn.overlap) == (NEW_ID, None)


def test_an_overlap_gives_nobody_a_second_vote() -> None:
    trust = rotated(agents=2)
    both = artifact(NOW, ISSUER, NEW)
    assert verdict(both, trust, START) is Reason.THRESHOLD_NOT_MET
    assert verdict(artifact(NOW, ISSUER, SECOND), trust, START) is Reason.AUTHORIZED
    assert verdict(artifact(NOW, NEW, SECOND), trust, START) is Reason.AUTHORIZED
    # without the word that one replaces the other they would be two
    strangers = issuing.store(trusted(ISSUER), trusted(NEW), agents=2)
    assert verdict(both, strangers, START) is Reason.AUTHORIZED


def test_a_chain_of_successors_is_one_holder_even_when_a_link_was_removed() -> None:
    keys = [generate(Algorithm.ED25519) for _ in range(3)]
    ids = [key.public_key.keyid for key in keys]
    chain = [trusted(keys[0]), *(trusted(key, replaces=ids[index]) for index, key in enumerate(keys[1:]))]
    trust = issuing.store(*chain, agents=2)
    assert verdict(artifact(NOW, *keys), trust, NOW) is Reason.THRESHOLD_NOT_MET
    without_first = issuing.store(*chain[1:], agents=2)
    assert verdict(artifact(NOW, *keys[1:]), without_first, NOW) is Reason.THRESHOLD_NOT_MET


def test_a_circle_of_successors_is_one_holder() -> None:
    circle = (
        trusted(ISSUER, replaces=SECOND.public_key.keyid),
        trusted(SECOND, replaces=ISSUER.public_key.keyid),
    )
    assert issuing.store(*circle).holders(circle) == 1


def test_a_seal_counts_holders_too() -> None:
    keeper = {"roles": frozenset({Role.MAINTENANCE}), "scopes": frozenset({SCOPE})}
    trust = issuing.store(trusted(ISSUER, **keeper), trusted(NEW, replaces=OLD_ID, **keeper), **{SCOPE: 2})
    with pytest.raises(Refused):
        require_liftable(trust, NOW)


@pytest.mark.parametrize(
    ("old", "problem"),
    [
        ({"revoked": NOW}, "revoked"),
        ({"not_after": START}, "nothing overlaps"),
        ({"not_after": END - timedelta(seconds=1)}, "before the overlap does"),
        ({"not_before": END}, "not valid before"),
    ],
)
def test_a_rotation_with_a_gap_is_refused(old: dict[str, datetime], problem: str) -> None:
    trust = issuing.store(trusted(ISSUER, **old))
    with pytest.raises(UsageError, match=problem) as caught:
        rotation.succeed(trust, OLD_ID, NEW.public_key, START, OVERLAP)
    assert caught.value.next_step


def test_a_key_has_one_successor() -> None:
    trust = rotated()
    with pytest.raises(UsageError, match="already"):
        rotation.succeed(trust, OLD_ID, STRANGER.public_key, START, OVERLAP)
    with pytest.raises(UsageError, match="already trusted"):
        rotation.succeed(trust, NEW_ID, SECOND.public_key, START, OVERLAP)
    with pytest.raises(UsageError) as caught:
        rotation.succeed(trust, "00" * 32, STRANGER.public_key, START, OVERLAP)
    assert caught.value.reason is Reason.NOT_FOUND


def test_an_interrupted_rotation_is_run_again(tmp_path: Path) -> None:
    folder = tmp_path / "trust"
    store.add(folder, trusted(ISSUER))
    trust = TrustStore.load(folder)
    new, _old = rotation.succeed(trust, OLD_ID, NEW.public_key, START, OVERLAP)
    store.put(folder, new)  # and then the power went
    half = TrustStore.load(folder)
    assert verdict(artifact(NOW, ISSUER), half, END) is Reason.AUTHORIZED
    new, old = rotation.succeed(half, OLD_ID, NEW.public_key, START, OVERLAP)
    store.put(folder, new)
    store.put(folder, old)
    whole = TrustStore.load(folder)
    assert whole.keys[NEW_ID].replaces == OLD_ID
    assert whole.keys[OLD_ID].not_after == END


def test_the_commands_rotate_and_show_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "trust"
    store.add(folder, trusted(ISSUER, name="release desk"))
    write_public(NEW.public_key, tmp_path / "new.pub")
    where = ["--trust", str(folder)]
    assert run(["trust", "threshold", "agents", "2", *where]) == ExitCode.DONE
    assert (
        run(["trust", "rotate", OLD_ID, str(tmp_path / "new.pub"), "--overlap", "7d", *where])
        == ExitCode.DONE
    )
    capsys.readouterr()
    assert run(["trust", "list", *where]) == ExitCode.DONE
    shown = capsys.readouterr().out
    lines = {line.split()[0]: line for line in shown.splitlines()}
    assert " now " in lines[NEW_ID]
    assert " now " not in lines[OLD_ID]
    assert f"{NEW_ID[:16]} replaces {OLD_ID[:16]}: both verify from" in shown
    assert "scope agents: 2 signatures, of 1 issuers that are valid now (too few)" in shown
    assert (
        run(["trust", "rotate", OLD_ID, str(tmp_path / "new.pub"), "--overlap", "9", *where])
        == ExitCode.USAGE
    )
    late = ["--overlap", "1d", "--at", "9999-12-31T00:00:00Z"]
    assert run(["trust", "rotate", OLD_ID, str(tmp_path / "new.pub"), *late, *where]) == ExitCode.USAGE
