"""Policies that name packages, at the authority: it finds out itself whose package a file of its host is, and says where it cannot."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from egs_kernel.audit.entries import Evaluated
from egs_kernel.cli.asking import Remote, ask
from egs_kernel.errors import EgsError
from egs_kernel.model import Reason
from egs_kernel.packages import DPKG
from egs_kernel.policy.source import Source
from egs_kernel.trust.store import Role
from tests.authorities import Home, body_of, home
from tests.unit.test_policy_starters import source

GIT = Path("/usr/bin/git")
WORKLOADS = '@id("workload-tools") permit(principal is Workload, action, resource in Tool::"git");\n'

pytestmark = pytest.mark.skipif(
    not (DPKG / "info/git.list").exists(), reason="git is of no Debian package here"
)


def agents(account: str) -> Source:
    """The starter, for an agent that runs as this account."""
    found = source("ai-agent")
    (agent,) = found.manifest.catalog.agent
    mine = msgspec.structs.replace(agent, account=account)
    catalog = msgspec.structs.replace(found.manifest.catalog, agent=(mine,))
    return Source(msgspec.structs.replace(found.manifest, catalog=catalog), found.tests)


@pytest.fixture(scope="module")
def authority() -> Iterator[Home]:
    """Under the starter ai-agent, whose tool git is a package, and with the same tool for workloads of other hosts."""
    manifest = agents("root").manifest
    with home() as made:
        (text,) = manifest.policies.values()
        signer = made.trust("starters", Role.POLICY)
        made.activate(text + WORKLOADS, signer, 2, manifest.catalog)
        made.secure()
        made.start(listeners=2)
        yield made


def denied(by: Home, program: Path, remote: Remote | None = None, **intent: str) -> EgsError:
    with pytest.raises(EgsError) as error:
        ask(by.paths, "POST", "/v1/requests", body_of(str(program), **intent), remote=remote)
    assert error.value.reason is Reason.POLICY_DENIED
    return error.value


def test_the_starter_s_tool_is_issued(authority: Home) -> None:
    answer = authority.request(str(GIT), argv=["git", "log"])
    assert answer["state"] == "issued"
    assert authority.of(Evaluated)[-1].determining == ("agent-tools",)


def test_the_command_gets_it_as_well(authority: Home) -> None:
    done = authority.egs("request", "--", "git", "log")
    assert done.returncode == 0, done.stderr


def test_another_package_and_the_same_file_elsewhere_are_not(authority: Home) -> None:
    copy = Path(shutil.copy(GIT, authority.root / "git"))
    for program in (Path("/bin/true"), copy):
        error = denied(authority, program)
        assert "nothing in it does" in error.message
        assert "package" not in error.message + error.next_step


def test_of_another_host_s_files_it_says_that_it_does_not_know(authority: Home) -> None:
    error = denied(authority, GIT, authority.remote, host="host-7")
    assert error.message.partition(" (request")[0].endswith(
        "of which package a file of another host is, is not known here"
    )
    assert "by path or digest" in error.next_step
