"""What people get wrong at the authority, as they see it: the real commands, their exit codes, their words; and what the record says of it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from egs_kernel.audit.entries import Issuance
from egs_kernel.errors import EgsError
from egs_kernel.model import Reason
from egs_kernel.trust.store import Role
from tests.authorities import Home, home

HOUR_AHEAD = "import time; real = time.time; time.time = lambda: real() + 3600"


@pytest.fixture(scope="module")
def authority() -> Iterator[Home]:
    with home() as made:
        made.trust("ann", Role.APPROVER)
        made.start()
        yield made


def waiting(by: Home) -> str:
    """A request that waits for two approvals, as a command says it; its id."""
    done = by.egs("request", "--json", "--", "/bin/echo")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["reason"]) == (1, "approval_required")
    return str(error["message"].split()[1])


def refused(by: Home, reason: Reason, *words: str) -> str:
    """A command is refused in words, with something to do next, and the record says so; what it said."""
    done = by.egs(*words)
    first, _, next_step = done.stderr.strip().partition("\n")
    assert (done.returncode, done.stdout.count("approved")) == (1, 0), done.stderr
    assert first.startswith("egs: ")
    assert first.endswith(f"[{reason.code}]")
    assert next_step
    entry = by.of(Issuance)[-1]
    assert (entry.action, entry.reason) == ("denied", reason)
    return first


def test_a_key_without_the_role_approves_nothing(authority: Home) -> None:
    key = str(authority.root / "policy.key")
    said = refused(authority, Reason.APPROVAL_INVALID, "approve", waiting(authority), "--key", key)
    assert "may not approve" in said


def test_an_approval_that_is_given_again_does_not_count_again(authority: Home) -> None:
    command = ("approve", waiting(authority), "--key", str(authority.root / "ann.key"))
    first = authority.egs(*command)
    assert (first.returncode, first.stdout.splitlines()[-1]) == (0, "counted: 1 of 2 approvals")
    assert "ann has answered already" in refused(authority, Reason.APPROVAL_INVALID, *command)


def test_an_approval_of_an_intent_that_was_seen_elsewhere_and_is_another(authority: Home) -> None:
    key, other = str(authority.root / "ann.key"), "0" * 64
    command = ("approve", waiting(authority), "--key", key, "--digest", other)
    assert "another intent" in refused(authority, Reason.APPROVAL_INVALID, *command)


def test_an_approval_that_comes_too_late_and_a_clock_that_is_wrong() -> None:
    with home(more='approval_window = "1s"\n') as made:
        made.trust("ann", Role.APPROVER)
        made.start()
        request = waiting(made)
        while _still_waits(made, request):
            pass
        command = ("approve", request, "--digest", "0" * 64, "--key", str(made.root / "ann.key"))
        assert "the request waited until" in refused(made, Reason.APPROVAL_INVALID, *command)
        late = made.egs("request", "--id", request)
        assert (late.returncode, "nobody answered until" in late.stderr) == (1, True), late.stderr
        made.stop()
        made.start(first=HOUR_AHEAD)
        said = refused(made, Reason.CLOCK_WRONG, "request", "--", "/bin/true")
        assert "the asker's clock says" in said
        assert "the authority's" in said


def _still_waits(by: Home, request: str) -> bool:
    try:
        return bool(by.ask("GET", f"/v1/requests/{request}")["state"] == "pending")
    except EgsError:
        return False
