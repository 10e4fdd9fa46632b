"""T-38, T-39, T-40, O-22: an artifact that policy does not permit, an approval that nobody gave, keys of another process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from egs_kernel.artifact.statement import format_time
from egs_kernel.audit.entries import Issuance
from egs_kernel.audit.logkeys import LogKeys
from egs_kernel.authority.approvals import sign_approval
from egs_kernel.cli.asking import ask
from egs_kernel.errors import EgsError
from egs_kernel.model import Reason
from egs_kernel.sslib import CryptoSigner
from egs_kernel.trust import keys
from egs_kernel.trust.hybrid import HybridSigner
from egs_kernel.trust.store import Role
from tests.authorities import AUTHORITY, Home, body_of, home

REPOSITORY = Path(__file__).parents[2]
CONSOLE = 64322
"""Any user without rights, as the console is."""
PEOPLE = ("ann", "bob", "same-person-1", "same-person-2")
POLICY = """
@id("root-true") permit(principal == User::"root", action == Action::"execute", resource)
when { resource.path like "*/true" };
@id("two-people") permit(principal, action == Action::"execute", resource)
when { resource.path like "*/echo" && context.approvals >= 2 };
"""


@pytest.fixture(scope="module")
def authority() -> Iterator[Home]:
    if os.geteuid() != 0:
        pytest.skip("needs root: it acts as several users")
    with home(POLICY) as made:
        for name in PEOPLE:
            made.trust(name, Role.APPROVER)
        made.start()
        yield made


def key_of(by: Home, name: str) -> CryptoSigner | HybridSigner:
    return keys.load_private(by.root / f"{name}.key")


# -- T-38 ----------------------------------------------------------------------------------------


def test_as_somebody_else(authority: Home) -> None:
    assert authority.egs("request", "--", "/bin/true").returncode == 0
    done = authority.egs("request", "--", "/bin/true", user=CONSOLE)
    assert (done.returncode, "[policy_denied]" in done.stderr) == (1, True)


def test_in_somebody_else_s_name(authority: Home) -> None:
    body = body_of(uid=0)
    code = (
        "import json, sys; from egs_kernel.cli.asking import ask; from egs_kernel.paths import Paths; import os;"
        f"os.setgroups([]); os.setuid({CONSOLE});"
        "ask(Paths.from_environment(), 'POST', '/v1/requests', json.loads(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(body)],
        env=authority.environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    assert "[not_permitted]" in done.stderr
    assert authority.of(Issuance)[-1].reason is Reason.NOT_PERMITTED


def test_under_another_program_s_name(authority: Home) -> None:
    """The digest of one program with the path of another, by a link or a plain lie."""
    true, cat = body_of("/bin/true"), body_of("/bin/cat")
    body = body_of("/bin/true")
    body["intent"]["program"]["sha256"] = cat["intent"]["program"]["sha256"]
    with pytest.raises(EgsError) as lie:
        authority.ask("POST", "/v1/requests", body)
    assert lie.value.reason is Reason.DIGEST_MISMATCH
    link = authority.root / "true"
    link.symlink_to("/usr/bin/cat")
    body["intent"]["program"]["path"] = str(link)
    with pytest.raises(EgsError, match="symbolic link"):
        authority.ask("POST", "/v1/requests", body)
    assert true["intent"]["program"]["path"].endswith("/true")


def test_by_an_argument_that_frees_one(authority: Home) -> None:
    with pytest.raises(EgsError, match="stands for any"):
        authority.request("/bin/true", argv=["/bin/true", "*"])


# -- T-39 ----------------------------------------------------------------------------------------


def test_by_an_approval_of_something_else(authority: Home) -> None:
    anns = key_of(authority, "ann")
    small, large = (authority.request("/bin/echo", argv=["echo", word]) for word in ("small", "large"))
    seen = {"request": large["request"], "digest": small["intentDigest"]}
    for changes in (seen, {"request": small["request"], "digest": small["intentDigest"]}):
        body = sign_approval(
            anns, approves=True, now=datetime.now(UTC), valid_for=timedelta(minutes=5), **changes
        )
        with pytest.raises(EgsError) as error:
            authority.ask("POST", f"/v1/requests/{large['request']}/approvals", body)
        assert error.value.reason is Reason.APPROVAL_INVALID


def test_by_one_key_for_two_people(authority: Home) -> None:
    bobs = key_of(authority, "bob")
    waiting = authority.request("/bin/echo")
    for number in range(3):
        body = sign_approval(
            bobs,
            request=waiting["request"],
            digest=waiting["intentDigest"],
            approves=True,
            now=datetime.now(UTC) - timedelta(seconds=number),
            valid_for=timedelta(minutes=5),
        )
        if number == 0:
            authority.ask("POST", f"/v1/requests/{waiting['request']}/approvals", body)
            continue
        with pytest.raises(EgsError, match="answered already"):
            authority.ask("POST", f"/v1/requests/{waiting['request']}/approvals", body)
    assert authority.ask("GET", f"/v1/requests/{waiting['request']}")["state"] == "pending"


# -- T-40 ----------------------------------------------------------------------------------------


def reads(path: Path, *command: str) -> bool:
    done = subprocess.run([*command, "cat", str(path)], capture_output=True, check=False)
    return done.returncode == 0 and bool(done.stdout)


def as_user(uid: int, *groups: int) -> tuple[str, ...]:
    given = f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"
    return ("setpriv", f"--reuid={uid}", f"--regid={uid}", given)


@pytest.fixture(scope="module")
def log_key(authority: Home) -> Path:
    """The key of the daemon's record, made as egsd makes it."""
    LogKeys.open(authority.paths.log_keys, "egs-kernel/test-host/record", lambda: 0.0)
    (found,) = authority.paths.log_keys.glob("*.key")
    return found


def test_the_authority_cannot_read_the_log_s_key(authority: Home, log_key: Path) -> None:
    assert reads(log_key)
    assert not reads(log_key, *as_user(AUTHORITY))
    assert not reads(log_key, *as_user(AUTHORITY), "--bounding-set=-all")


def test_the_daemon_cannot_read_the_issuer_s_key(authority: Home, log_key: Path) -> None:
    """Root needs a capability to open it. The daemon has that one, so its unit takes the folder out of its sight."""
    key = authority.paths.authority_state / "issuer.key"
    assert reads(key, *as_user(AUTHORITY))
    less = "-dac_override,-dac_read_search"
    assert not reads(key, "setpriv", f"--bounding-set={less}", f"--inh-caps={less}")
    assert reads(key)
    hidden = inaccessible("egsd.service", authority)
    assert authority.paths.authority_state in hidden
    assert not reads(key, *without(hidden))
    assert reads(log_key, *without(hidden))


def test_the_console_can_read_neither(authority: Home, log_key: Path) -> None:
    """Though it is in the group that may read the daemon's record."""
    key = authority.paths.authority_state / "issuer.key"
    for path in (key, log_key):
        assert not reads(path, *as_user(CONSOLE, log_key.stat().st_gid))
    hidden = inaccessible("egs-console.service", authority)
    assert {authority.paths.authority_state, authority.paths.log_keys} <= set(hidden)


def inaccessible(unit: str, by: Home) -> list[Path]:
    """What a unit hides, in this instance's place."""
    text = (REPOSITORY / "systemd" / unit).read_text()
    named = re.findall(r"(?m)^InaccessiblePaths=(.*)$", text)[0].split()
    paths = [Path(f"{by.root}{name.removeprefix('-')}") for name in named if "/var/lib/" in name]
    return [path for path in paths if path.exists()]


def without(hidden: list[Path]) -> tuple[str, ...]:
    """What systemd does to hide folders: something empty is mounted over them."""
    mounts = "".join(f"mount -t tmpfs -o mode=0000,size=4k none '{path}'; " for path in hidden)
    return ("unshare", "--mount", "sh", "-ec", f'{mounts}exec "$@"', "sh")


# -- O-22 ----------------------------------------------------------------------------------------


def test_a_key_that_two_people_share_is_one_person_s(authority: Home) -> None:
    """The authority counts keys. Who holds two of them approves twice."""
    one, two = (key_of(authority, name) for name in ("same-person-1", "same-person-2"))
    waiting = authority.request("/bin/echo", purpose="alone")
    answer = waiting
    for signer in (one, two):
        body = sign_approval(
            signer,
            request=waiting["request"],
            digest=waiting["intentDigest"],
            approves=True,
            now=datetime.now(UTC),
            valid_for=timedelta(minutes=5),
        )
        answer = ask(authority.paths, "POST", f"/v1/requests/{waiting['request']}/approvals", body)
    assert answer["state"] == "issued"
    assert format_time(datetime.now(UTC)) < answer["notAfter"]
