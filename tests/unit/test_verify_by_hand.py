"""The programs of docs/verify-by-hand.md, as they stand there: they verify what we sign, and nothing else."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from egs_kernel.artifact import canonical
from egs_kernel.artifact.envelope import sign
from egs_kernel.artifact.statement import format_time
from egs_kernel.trust.keys import public_pem
from tests.unit.issuing import EVERY_FIELD, ISSUER, SECOND, STRANGER, signed, statement

if TYPE_CHECKING:
    from egs_kernel.sslib import Signer

PAGE = Path(__file__).parents[2] / "docs" / "verify-by-hand.md"
SIGNERS = {"ed25519": ISSUER, "ecdsa-p256": SECOND}


def block(language: str) -> str:
    (found,) = re.findall(
        rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return str(found)


def by_openssl(*arguments: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", block("sh"), "verify-by-hand.sh", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def by_securesystemslib(*arguments: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", block("python"), *arguments], capture_output=True, text=True, check=False
    )


def current(**predicate: Any) -> dict[str, Any]:
    now = datetime.now(UTC)
    times = {
        "issuedAt": format_time(now),
        "notBefore": format_time(now - timedelta(minutes=1)),
        "notAfter": format_time(now + timedelta(minutes=5)),
    }
    return statement({**EVERY_FIELD, **times, **predicate})


def place(folder: Path, content: bytes, signer: Signer) -> tuple[Path, Path]:
    artifact, key = folder / "job.artifact", folder / "issuer.pub"
    artifact.write_bytes(content)
    key.write_text(public_pem(signer.public_key))
    return artifact, key


@pytest.mark.parametrize("signer", SIGNERS.values(), ids=SIGNERS)
def test_a_good_artifact_verifies(signer: Signer, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"the program")
    value = current()
    value["subject"][0]["digest"]["sha256"] = hashlib.sha256(b"the program").hexdigest()
    artifact, key = place(tmp_path, signed(value, signer), signer)
    shell = by_openssl(artifact, key, program)
    assert shell.returncode == 0, shell.stderr
    assert f"verified {hashlib.sha256(canonical.encode(value)).hexdigest()}" in shell.stdout
    library = by_securesystemslib(artifact, key)
    assert library.returncode == 0, library.stderr
    assert json.loads(library.stdout) == value


@pytest.mark.parametrize("signer", SIGNERS.values(), ids=SIGNERS)
def test_a_changed_payload_does_not(signer: Signer, tmp_path: Path) -> None:
    good = json.loads(signed(current(), signer))
    other = json.loads(signed(current(uses=4), signer))
    content = json.dumps({**good, "payload": other["payload"]}).encode()
    artifact, key = place(tmp_path, content, signer)
    shell = by_openssl(artifact, key)
    assert (shell.returncode, shell.stdout) == (1, "")
    assert "no signature" in shell.stderr
    assert by_securesystemslib(artifact, key).returncode != 0


@pytest.mark.parametrize("signer", SIGNERS.values(), ids=SIGNERS)
def test_a_strangers_signature_does_not(signer: Signer, tmp_path: Path) -> None:
    artifact, key = place(tmp_path, signed(current(), STRANGER), signer)
    assert by_openssl(artifact, key).returncode == 1
    assert by_securesystemslib(artifact, key).returncode != 0


def test_the_second_of_two_signatures_is_found(tmp_path: Path) -> None:
    artifact, key = place(tmp_path, signed(current(), ISSUER, SECOND), SECOND)
    assert by_openssl(artifact, key).returncode == 0


def test_the_shell_page_refuses_what_is_signed_but_wrong(tmp_path: Path) -> None:
    past, future = (format_time(datetime.now(UTC) + timedelta(days=days)) for days in (-1, 1))
    cases = {
        "not valid now": signed(current(notAfter=past)),
        "not valid now\n": signed(current(notBefore=future, notAfter=future)),
        "another kind of statement": signed({**current(), "predicateType": "urn:other"}),
        "not canonical": sign(json.dumps(current()).encode(), [ISSUER]),
        "another program": signed(current()),
    }
    for problem, content in cases.items():
        artifact, key = place(tmp_path, content, ISSUER)
        shell = by_openssl(artifact, key, PAGE)
        assert (shell.returncode, shell.stdout) == (1, ""), problem
        assert problem.strip() in shell.stderr
