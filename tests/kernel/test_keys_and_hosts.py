"""The real daemon: keys of the new kinds, a rotation that comes into force by a reload, whose host and whose unit it is."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest

from egs_kernel.authority.askers import asker_again, local_asker
from egs_kernel.authority.store import Known
from egs_kernel.gate.cgroups import cgroup_mount
from egs_kernel.identity.units import unit_of
from egs_kernel.processes import cgroup_of
from tests.running import Running, running_on_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def system() -> Iterator[Running]:
    """Gate, daemon and a trusted key, for all tests of this file."""
    with running_on_disk() as made:
        yield made


def status(system: Running) -> dict[str, Any]:
    details: dict[str, Any] = json.loads(system.instance.egs("status", "--json").stdout)["details"]
    return details


def trust(system: Running, name: str, algorithm: str) -> str:
    """A new key that is trusted as an issuer; its id."""
    egs, folder = system.instance.egs, system.folder
    made = egs("keys", "generate", "--name", name, "--out", str(folder), "--algorithm", algorithm, "--json")
    egs("trust", "add", str(folder / f"{name}.pub"), "--role", "issuer", "--scope", "test")
    return str(json.loads(made.stdout)["keyid"])


def refusal(system: Running, artifact: Path, program: Path) -> str:
    ended = system.run("--artifact", str(artifact), "--", str(program))
    return "" if ended.returncode == 0 else ended.stderr


def test_what_ml_dsa_and_hybrid_keys_sign_runs(system: Running) -> None:
    program = system.copy("/bin/true", "program")
    for name, algorithm in (("quantum", "ml-dsa-65"), ("hybrid", "ed25519+ml-dsa-65")):
        trust(system, name, algorithm)
        artifact = system.issue(program, name=f"{name}.json", key=name)
        assert "[key_untrusted]" in refusal(system, artifact, program)
        system.instance.egs("reload")
        assert refusal(system, artifact, program) == ""


def test_a_rotation_in_force_and_an_old_key_at_its_end(system: Running) -> None:
    egs = system.instance.egs
    program = system.copy("/bin/true", "program")
    known = trust(system, "elder", "ed25519")
    old = system.issue(program, name="old.json", key="elder")
    egs("keys", "generate", "--name", "next", "--out", str(system.folder), "--algorithm", "ed25519+ml-dsa-65")
    egs("trust", "rotate", known, str(system.folder / "next.pub"), "--overlap", "1h")
    egs("reload")
    new = system.issue(program, name="new.json", key="next")
    assert [refusal(system, artifact, program) for artifact in (old, new)] == ["", ""]
    # the overlap is over: as if an hour had gone
    path = system.instance.paths.trust / f"{known}.toml"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("not_after")]
    path.write_text("\n".join(['not_after = "2020-01-01T00:00:00Z"', *lines, ""]))
    egs("reload")
    assert "[key_not_valid_now]" in refusal(system, old, program)
    assert refusal(system, new, program) == ""


def test_the_host_has_a_key_and_artifacts_are_bound_by_it(system: Running) -> None:
    known = status(system)
    assert json.loads(system.instance.egs("doctor", "--json", check=False).stdout)["host"] == {
        "id": known["host_id"],
        "key": known["host_key"],
        "problem": None,
    }
    program = system.copy("/bin/true", "program")
    for host in (known["host_id"], known["host_key"]):
        artifact = system.issue(program, "--host", host, name="mine.json")
        assert refusal(system, artifact, program) == ""
    other = system.issue(program, "--host", "ab" * 32, name="other.json")
    assert "[host_mismatch]" in refusal(system, other, program)
    system.stop()
    system.start()
    assert status(system)["host_key"] == known["host_key"]


CONNECT = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)"


def test_the_authority_sees_the_unit_of_who_asks(tmp_path: Path) -> None:
    """By the kernel's word alone: the asker says nothing."""
    top = cgroup_mount() / f"egs{os.getpid()}.slice"
    inside = top / "report.service"
    inside.mkdir(parents=True)
    ours = unit_of(cgroup_of(os.getpid()))
    try:
        for enter, unit in (
            (lambda: (inside / "cgroup.procs").write_text("0"), "report.service"),
            (None, ours),
        ):
            with socket.socket(socket.AF_UNIX) as listener:
                path = tmp_path / f"{unit}.sock"
                listener.bind(str(path))
                listener.listen()
                command = [sys.executable, "-c", CONNECT, str(path)]
                with subprocess.Popen(command, preexec_fn=enter) as asker:
                    connection, _ = listener.accept()
                    with connection:
                        found = local_asker(connection)
                assert (found.unit, found.pid) == (unit, asker.pid)
        said: dict[str, Any] = {field.name: None for field in fields(Known)}
        said |= {"principal": found.principal, "uid": found.uid, "gid": found.gid, "unit": "a.service"}
        again = asker_again(Known(**said))
        assert (again.unit, again.groups) == ("a.service", found.groups)
    finally:
        inside.rmdir()
        top.rmdir()
