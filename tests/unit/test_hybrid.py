"""The hybrid key: the published construction, and nothing that verifies by one half."""

from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from egs_kernel.artifact.envelope import parse_envelope
from egs_kernel.errors import Refused, UsageError
from egs_kernel.model import Reason
from egs_kernel.sslib import CryptoSigner, Envelope, Key, Signature, UnverifiedSignatureError
from egs_kernel.trust import store
from egs_kernel.trust.hybrid import HybridKey, HybridSigner, framed
from egs_kernel.trust.keys import Algorithm, algorithm_of, generate, load_public, public_pem
from egs_kernel.verify import authenticate
from tests.unit import issuing
from tests.unit.issuing import NOW, signed, statement, trusted

if TYPE_CHECKING:
    from collections.abc import Callable

VECTOR = json.loads(Path(__file__).with_name("composite_mldsa65_ed25519.json").read_text())
MLDSA_SIGNATURE = 3309
HYBRID = HybridSigner.generate()


def test_the_published_vector_verifies() -> None:
    """draft-ietf-lamps-pq-composite-sigs: another implementation's key and signature."""
    secret = b64decode(VECTOR["sk"])
    signer = HybridSigner(
        Ed25519PrivateKey.from_private_bytes(secret[32:]), MLDSA65PrivateKey.from_seed_bytes(secret[:32])
    )
    assert bytes.fromhex(signer.public_key.keyval["public"]) == b64decode(VECTOR["pk"])
    signature = Signature(signer.public_key.keyid, b64decode(VECTOR["s"]).hex())
    signer.public_key.verify_signature(signature, b64decode(VECTOR["m"]))


def halves(signature: Signature) -> tuple[bytes, bytes]:
    content = bytes.fromhex(signature.signature)
    return content[:MLDSA_SIGNATURE], content[MLDSA_SIGNATURE:]


OTHER = HybridSigner.generate()
FORGERIES: dict[str, Callable[[bytes, bytes], bytes]] = {
    "without ML-DSA": lambda _mldsa, ed25519: ed25519,
    "without Ed25519": lambda mldsa, _ed25519: mldsa,
    "ML-DSA of zeros": lambda mldsa, ed25519: bytes(len(mldsa)) + ed25519,
    "Ed25519 of zeros": lambda mldsa, ed25519: mldsa + bytes(len(ed25519)),
    "ML-DSA of another key": lambda _mldsa, ed25519: halves(OTHER.sign(b"data"))[0] + ed25519,
    "Ed25519 of another key": lambda mldsa, _ed25519: mldsa + halves(OTHER.sign(b"data"))[1],
    "ML-DSA of other data": lambda _mldsa, ed25519: halves(HYBRID.sign(b"else"))[0] + ed25519,
    "Ed25519 of other data": lambda mldsa, _ed25519: mldsa + halves(HYBRID.sign(b"else"))[1],
    "the other way round": lambda mldsa, ed25519: ed25519 + mldsa,
    "more behind it": lambda mldsa, ed25519: mldsa + ed25519 + b"\0",
    "nothing": lambda _mldsa, _ed25519: b"",
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_one_half_is_no_signature(forge: Callable[[bytes, bytes], bytes]) -> None:
    good = HYBRID.sign(b"data")
    HYBRID.public_key.verify_signature(good, b"data")
    with pytest.raises(UnverifiedSignatureError):
        HYBRID.public_key.verify_signature(Signature(good.keyid, forge(*halves(good)).hex()), b"data")


def test_a_half_is_no_signature_by_its_own_key_either() -> None:
    """What a hybrid key signs cannot be taken apart and passed off as a plain key's."""
    mldsa, ed25519 = (CryptoSigner(key) for key in (HYBRID.mldsa, HYBRID.ed25519))
    parts = halves(HYBRID.sign(b"data"))
    for signer, part in zip((mldsa, ed25519), parts, strict=True):
        key = signer.public_key
        with pytest.raises(UnverifiedSignatureError):
            key.verify_signature(Signature(key.keyid, part.hex()), b"data")
    with pytest.raises(UnverifiedSignatureError):
        HYBRID.public_key.verify_signature(
            Signature(
                HYBRID.public_key.keyid, (mldsa.sign(b"data").signature + ed25519.sign(b"data").signature)
            ),
            b"data",
        )


def test_what_both_sign_is_no_dsse_envelope() -> None:
    assert framed(b"x").startswith(b"CompositeAlgorithmSignatures2025COMPSIG-MLDSA65-Ed25519-SHA512\0")
    assert not framed(b"x").startswith(b"DSSEv1 ")


@given(st.binary(max_size=300))
def test_it_signs_anything(data: bytes) -> None:
    HYBRID.public_key.verify_signature(HYBRID.sign(data), data)


def test_it_is_one_key_in_two_blocks_and_in_a_dictionary() -> None:
    pem = public_pem(HYBRID.public_key)
    assert pem.count("BEGIN PUBLIC KEY") == 2
    assert load_public(pem.encode(), "n.pub") == HYBRID.public_key
    assert algorithm_of(HYBRID.public_key) is Algorithm.HYBRID
    known = HYBRID.public_key.to_dict()
    assert Key.from_dict(HYBRID.public_key.keyid, dict(known)) == HYBRID.public_key
    with pytest.raises(ValueError, match="key id"):
        HybridKey.from_dict("00" * 32, dict(known))


def test_other_pairs_of_blocks_are_no_key() -> None:
    pem = public_pem(HYBRID.public_key)
    first, second = (
        f"{block}-----END PUBLIC KEY-----\n" for block in pem.split("-----END PUBLIC KEY-----\n")[:2]
    )
    for blocks in (second + first, first + first, second + second, first + second + first):
        with pytest.raises(UsageError):
            load_public(blocks.encode(), "n.pub")
    # each alone is a key, and another one
    ids = {load_public(block.encode(), "n.pub").keyid for block in (first, second, first + second)}
    assert len(ids) == 3


@pytest.mark.parametrize("algorithm", [Algorithm.ML_DSA_65, Algorithm.HYBRID])
def test_an_artifact_signed_by_it_authenticates_and_a_changed_one_does_not(algorithm: Algorithm) -> None:
    signer = generate(algorithm)
    content = signed(statement(), signer)
    trust = issuing.store(trusted(signer))
    assert authenticate(content, trust, NOW).signers == (signer.public_key.keyid,)
    envelope = parse_envelope(content)
    forged = Envelope(
        envelope.payload.replace(b"report", b"repurt"), envelope.payload_type, envelope.signatures
    )
    with pytest.raises(Refused) as caught:
        authenticate(json.dumps(forged.to_dict()).encode(), trust, NOW)
    assert caught.value.reason is Reason.SIGNATURE_INVALID


def test_a_hybrid_artifact_whose_second_half_was_cut_off_is_refused() -> None:
    """A quantum attacker forges Ed25519 alone; the file must not be accepted on that."""
    trust = issuing.store(trusted(HYBRID))
    envelope = parse_envelope(signed(statement(), HYBRID))
    (signature,) = envelope.signatures.values()
    mldsa, ed25519 = halves(signature)
    for part in (ed25519, bytes(len(mldsa)) + ed25519, mldsa + bytes(64)):
        envelope.signatures = {signature.keyid: Signature(signature.keyid, part.hex())}
        with pytest.raises(Refused) as caught:
            authenticate(json.dumps(envelope.to_dict()).encode(), trust, NOW)
        assert caught.value.reason is Reason.SIGNATURE_INVALID


def test_ten_hybrid_signatures_fit_into_an_artifact_and_sixteen_do_not() -> None:
    signers = [HybridSigner.generate() for _ in range(16)]
    assert len(parse_envelope(signed(statement(), *signers[:10])).signatures) == 10
    with pytest.raises(Refused) as caught:
        signed(statement(), *signers)
    assert caught.value.reason is Reason.ARTIFACT_TOO_LARGE


def test_a_part_of_a_trusted_key_is_not_trusted_a_second_time(tmp_path: Path) -> None:
    """Its holder would count twice."""
    folder = tmp_path / "trust"
    store.add(folder, trusted(HYBRID))
    half = CryptoSigner(HYBRID.ed25519)
    with pytest.raises(UsageError, match="part in common"):
        store.add(folder, trusted(half))
    store.remove(folder, HYBRID.public_key.keyid)
    store.add(folder, trusted(half))
    with pytest.raises(UsageError, match="part in common"):
        store.add(folder, trusted(HYBRID))
