"""SVIDs against a bundle: each rule of the SPIFFE specifications, by an SVID that breaks it alone."""

from __future__ import annotations

import hashlib
import hmac
import json
import warnings
from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ssl import PEM_cert_to_DER_cert
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm
from jwt.warnings import InsecureKeyLengthWarning

from egs_kernel.errors import EgsError, Refused, UsageError
from egs_kernel.identity.bundles import DEFAULT_REFRESH, Bundles, parse_bundle
from egs_kernel.identity.jwt_svid import MAX_TOKEN
from egs_kernel.identity.principal import BearerToken, ClientCertificate, Peer, Principal, resolve
from egs_kernel.identity.spiffe import SpiffeId
from egs_kernel.identity.units import is_unit_name, unit_cgroup, unit_of
from egs_kernel.model import Reason
from tests.signing import openbao
from tests.svids import (
    AGENT,
    AUDIENCE,
    AUTHORITY,
    DOMAIN,
    NOW,
    Authority,
    Shape,
    TrustDomain,
    authority,
    certificate,
    der,
    moment,
    new_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OURS, FOREIGN = TrustDomain(), TrustDomain(name="other.example")
OURS.jwt_keys["rsa"] = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OURS.jwt_keys["weak"] = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - it must be refused
OURS.jwt_keys["p384"] = ec.generate_private_key(ec.SECP384R1())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that trusts OURS alone."""
    OURS.write(tmp_path)
    return tmp_path


@pytest.fixture
def bundles(folder: Path) -> Bundles:
    return Bundles(folder)


def by_token(token: str, bundles: Bundles, now: datetime = NOW) -> Principal:
    return resolve(BearerToken(token, AUDIENCE), bundles, now)


def by_certificate(chain: tuple[bytes, ...], bundles: Bundles, now: datetime = NOW) -> Principal:
    return resolve(ClientCertificate(chain), bundles, now)


def reason(act: Callable[[], object]) -> Reason:
    with pytest.raises(EgsError) as caught:
        act()
    assert caught.value.next_step
    return caught.value.reason


# -- ids ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        f"spiffe://{DOMAIN}",
        AGENT,
        "spiffe://1.2.3.4/a",
        "spiffe://a_b-c.d/A/b-c_d.e/...",
        f"spiffe://{'a' * 255}/x",
    ],
)
def test_ids(text: str) -> None:
    assert str(SpiffeId.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe:",
        "spiffe://",
        "spiffe:///path",
        "https://example.org/a",
        "SPIFFE://example.org/a",
        "spiffe://Example.org/a",
        "spiffe://user@example.org/a",
        "spiffe://example.org:443/a",
        "spiffe://ex%61mple.org/a",
        "spiffe://example.org/",
        "spiffe://example.org/a/",
        "spiffe://example.org//a",
        "spiffe://example.org/a/./b",
        "spiffe://example.org/a/../b",
        "spiffe://example.org/a%2fb",
        "spiffe://example.org/a?x=1",
        "spiffe://example.org/a#b",
        "spiffe://example.org/a b",
        "spiffe://example.org/\u00e4",
        "spiffe://example.org/a\n",
        " spiffe://example.org/a",
        f"spiffe://{'a' * 256}/x",
        f"spiffe://example.org/{'a' * 2048}",
    ],
)
def test_no_ids(text: str) -> None:
    assert reason(lambda: SpiffeId.parse(text)) is Reason.SVID_INVALID


@given(st.text(max_size=60))
def test_an_id_is_written_as_it_was_read_or_refused(text: str) -> None:
    try:
        found = SpiffeId.parse(f"spiffe://{text}")
    except Refused:
        return
    assert str(found) == f"spiffe://{text}"


# -- JWT-SVIDs ---------------------------------------------------------------------------------------


def test_a_jwt_svid_names_its_workload(bundles: Bundles) -> None:
    found = by_token(OURS.token(), bundles)
    assert found.spiffe_id == AGENT
    assert found.expires == NOW + timedelta(seconds=300)
    assert found.uid is None


@pytest.mark.parametrize(
    ("kid", "algorithm"),
    [("k1", "ES256"), ("p384", "ES384"), *(("rsa", kind) for kind in ("RS256", "RS512", "PS256", "PS384"))],
)
def test_every_algorithm_of_the_specification(kid: str, algorithm: str, bundles: Bundles) -> None:
    assert by_token(OURS.token(kid=kid, algorithm=algorithm), bundles).spiffe_id == AGENT


def without_kid(token: str) -> str:
    claims = jwt.decode(token, options={"verify_signature": False})
    return jwt.encode(claims, OURS.jwt_keys["k1"], "ES256", {"typ": "JOSE"})


def test_the_key_id_is_optional(bundles: Bundles) -> None:
    assert by_token(without_kid(OURS.token()), bundles).spiffe_id == AGENT


def forged(token: str, **header: Any) -> str:
    """The same claims under another header, unsigned."""
    _header, claims, _signature = token.split(".")
    return f"{urlsafe_b64encode(json.dumps(header).encode()).decode().rstrip('=')}.{claims}."


def confused() -> str:
    """HS256 with the public key as its secret: the classic."""
    header = urlsafe_b64encode(b'{"alg":"HS256","kid":"rsa"}').decode().rstrip("=")
    claims = OURS.token().split(".")[1]
    secret = OURS.jwt_keys["rsa"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    tag = hmac.digest(secret, f"{header}.{claims}".encode(), hashlib.sha256)
    return f"{header}.{claims}.{urlsafe_b64encode(tag).decode().rstrip('=')}"


def weak() -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureKeyLengthWarning)  # PyJWT says what we refuse
        return OURS.token(kid="weak", algorithm="RS256")


def retouched() -> str:
    header, claims, signature = OURS.token().split(".")
    said = json.loads(urlsafe_b64decode(claims + "=="))
    said["sub"] = f"spiffe://{DOMAIN}/root"
    changed = urlsafe_b64encode(json.dumps(said).encode()).decode().rstrip("=")
    return f"{header}.{changed}.{signature}"


BAD_TOKENS: dict[str, tuple[Callable[[], str], Reason]] = {
    "empty": (lambda: "", Reason.SVID_INVALID),
    "nonsense": (lambda: "a.b.c", Reason.SVID_INVALID),
    "too large": (lambda: "a" * (MAX_TOKEN + 1), Reason.SVID_INVALID),
    "alg none": (lambda: forged(OURS.token(), alg="none"), Reason.SVID_INVALID),
    "alg None": (lambda: forged(OURS.token(), alg="None", kid="k1"), Reason.SVID_INVALID),
    "no alg": (lambda: forged(OURS.token(), kid="k1"), Reason.SVID_INVALID),
    "alg a list": (lambda: forged(OURS.token(), alg=[], kid="k1"), Reason.SVID_INVALID),
    "alg HS256": (confused, Reason.SVID_INVALID),
    "alg EdDSA": (lambda: forged(OURS.token(), alg="EdDSA", kid="k1"), Reason.SVID_INVALID),
    "alg of another curve": (lambda: forged(OURS.token(), alg="ES384", kid="k1"), Reason.SVID_INVALID),
    "alg of another kind": (lambda: forged(OURS.token(), alg="RS256", kid="k1"), Reason.SVID_INVALID),
    "unsigned": (lambda: forged(OURS.token(), alg="ES256", kid="k1"), Reason.SVID_INVALID),
    "changed": (retouched, Reason.SVID_INVALID),
    "header jwk": (lambda: OURS.token(header={"jwk": {}}), Reason.SVID_INVALID),
    "header jku": (lambda: OURS.token(header={"jku": "http://x"}), Reason.SVID_INVALID),
    "header crit": (lambda: OURS.token(header={"crit": ["exp"]}), Reason.SVID_INVALID),
    "header typ": (lambda: OURS.token(header={"typ": "at+jwt"}), Reason.SVID_INVALID),
    "weak RSA": (weak, Reason.SVID_INVALID),
    "unknown kid": (lambda: OURS.token(header={"kid": "k9"}), Reason.SVID_INVALID),
    "another's key id": (lambda: OURS.token(header={"kid": "p384"}), Reason.SVID_INVALID),
    "no sub": (lambda: OURS.token(sub=None), Reason.SVID_INVALID),
    "sub no id": (lambda: OURS.token(sub="report"), Reason.SVID_INVALID),
    "sub without path": (lambda: OURS.token(sub=f"spiffe://{DOMAIN}"), Reason.SVID_INVALID),
    "sub with .. in it": (lambda: OURS.token(sub=f"spiffe://{DOMAIN}/a/../root"), Reason.SVID_INVALID),
    "no aud": (lambda: OURS.token(aud=None), Reason.SVID_INVALID),
    "aud empty": (lambda: OURS.token(aud=[]), Reason.SVID_INVALID),
    "aud another": (lambda: OURS.token(aud="egs"), Reason.SVID_INVALID),
    "aud begins alike": (lambda: OURS.token(aud=[f"{AUDIENCE}-2"]), Reason.SVID_INVALID),
    "no exp": (lambda: OURS.token(exp=None), Reason.SVID_INVALID),
    "exp no time": (lambda: OURS.token(exp="tomorrow"), Reason.SVID_INVALID),
    "exp true": (lambda: OURS.token(exp=True), Reason.SVID_INVALID),
    "exp beyond time": (lambda: OURS.token(exp=10**18), Reason.SVID_INVALID),
    "expired": (lambda: OURS.token(exp=moment(0)), Reason.SVID_EXPIRED),
    "not yet": (lambda: OURS.token(nbf=moment(61)), Reason.SVID_EXPIRED),
    "issued in the future": (lambda: OURS.token(iat=moment(61)), Reason.SVID_EXPIRED),
    "another trust domain": (
        lambda: FOREIGN.token(sub="spiffe://other.example/a"),
        Reason.BUNDLE_UNTRUSTED,
    ),
    "another's key for our domain": (FOREIGN.token, Reason.SVID_INVALID),
    "our key for another domain": (
        lambda: OURS.token(sub="spiffe://other.example/a"),
        Reason.BUNDLE_UNTRUSTED,
    ),
}


@pytest.mark.parametrize(("make", "expected"), BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_a_token_that_breaks_one_rule_is_refused(
    make: Callable[[], str], expected: Reason, bundles: Bundles
) -> None:
    assert reason(lambda: by_token(make(), bundles)) is expected


def test_our_key_signs_nothing_for_a_domain_that_is_trusted_too(folder: Path) -> None:
    FOREIGN.write(folder)
    token = OURS.token(sub="spiffe://other.example/a")
    assert reason(lambda: by_token(token, Bundles(folder))) is Reason.SVID_INVALID


def test_the_clock_may_be_a_minute_behind_and_an_end_is_an_end(bundles: Bundles) -> None:
    by_token(OURS.token(iat=moment(60), nbf=moment(60)), bundles)
    token = OURS.token(exp=moment(300))
    by_token(token, bundles, NOW + timedelta(seconds=299))
    assert reason(lambda: by_token(token, bundles, NOW + timedelta(seconds=300))) is Reason.SVID_EXPIRED


# -- X.509-SVIDs -------------------------------------------------------------------------------------

CHAIN = OURS.chain()
MIDDLE = authority(replace(AUTHORITY, name="middle"), OURS.root)


def test_an_x509_svid_names_its_workload(bundles: Bundles) -> None:
    found = by_certificate(OURS.chain(), bundles)
    assert found.spiffe_id == AGENT
    assert found.expires == NOW + timedelta(minutes=30)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(extended=None),
        Shape(ca=None),
        Shape(usage=frozenset({"digital_signature", "key_agreement", "key_encipherment"})),
    ],
)
def test_what_an_x509_svid_may_leave_out_or_have(shape: Shape, bundles: Bundles) -> None:
    assert by_certificate(OURS.chain(shape), bundles).spiffe_id == AGENT


def test_a_chain_through_an_intermediate(bundles: Bundles) -> None:
    assert by_certificate(OURS.chain(None, MIDDLE), bundles).spiffe_id == AGENT
    without = OURS.chain(None, MIDDLE)[:1]
    assert reason(lambda: by_certificate(without, bundles)) is Reason.SVID_INVALID


def test_what_another_maker_issues_is_taken_by_the_same_rules(tmp_path: Path) -> None:
    """OpenBao's own authority and certificates, as SVIDs; without `clientAuth` they are none."""
    with openbao() as bao:
        bao.ask("POST", "sys/mounts/pki", {"type": "pki"})
        named = {"common_name": DOMAIN, "uri_sans": f"spiffe://{DOMAIN}", "key_type": "ec"}
        root = bao.ask("POST", "pki/root/generate/internal", named)["data"]["certificate"]
        rules = {"allowed_uri_sans": f"spiffe://{DOMAIN}/*", "require_cn": False, "key_type": "ec"}
        rules |= {"key_usage": ["DigitalSignature"], "ttl": "5m"}
        bao.ask("POST", "pki/roles/workload", rules)
        bao.ask("POST", "pki/roles/server", {**rules, "client_flag": False})
        issued = [
            bao.ask("POST", f"pki/issue/{role}", {"uri_sans": AGENT})["data"]
            for role in ("workload", "server")
        ]
    x5c = [b64encode(PEM_cert_to_DER_cert(root)).decode()]
    bundle = {"keys": [{"use": "x509-svid", "kty": "EC", "x5c": x5c}]}
    (tmp_path / f"{DOMAIN}.json").write_text(json.dumps(bundle))
    good, bad = ((PEM_cert_to_DER_cert(one["certificate"]),) for one in issued)
    found = by_certificate(good, Bundles(tmp_path), datetime.now(UTC))
    assert found.spiffe_id == AGENT
    assert found.expires == datetime.fromtimestamp(issued[0]["expiration"], UTC)
    now = datetime.now(UTC)
    assert reason(lambda: by_certificate(bad, Bundles(tmp_path), now)) is Reason.SVID_INVALID


def by_a_leaf() -> tuple[bytes, ...]:
    """A workload that signs another one's SVID."""
    key = new_key()
    leaf = certificate(Shape(), key, OURS.root)
    forged_leaf = certificate(
        Shape(uris=(f"spiffe://{DOMAIN}/root",)), new_key(), Authority(key=key, certificate=leaf)
    )
    return der(forged_leaf), der(leaf)


def by_an_authority(**changes: Any) -> Callable[[], tuple[bytes, ...]]:
    return lambda: OURS.chain(None, authority(replace(AUTHORITY, name="odd", **changes), OURS.root))


def of(**changes: Any) -> Callable[[], tuple[bytes, ...]]:
    return lambda: OURS.chain(Shape(**changes))


def below_a_path_length() -> tuple[bytes, ...]:
    first = authority(replace(AUTHORITY, name="first", path_length=0), OURS.root)
    second = authority(replace(AUTHORITY, name="second"), first)
    return OURS.chain(None, second, first)


INVALID, EXPIRED = Reason.SVID_INVALID, Reason.SVID_EXPIRED
BAD_CHAINS: dict[str, tuple[Callable[[], tuple[bytes, ...]], Reason]] = {
    "nothing": (lambda: (), INVALID),
    "nonsense": (lambda: (b"nonsense",), INVALID),
    "cut off": (lambda: (OURS.chain()[0][:-9],), INVALID),
    "too long": (lambda: OURS.chain() * 9, INVALID),
    "no URI": (of(uris=()), INVALID),
    "two URIs": (of(uris=(AGENT, f"spiffe://{DOMAIN}/root")), INVALID),
    "an id and another URI": (of(uris=(AGENT, "https://example.org/")), INVALID),
    "another URI": (of(uris=("https://example.org/agent",)), INVALID),
    "without a path": (of(uris=(f"spiffe://{DOMAIN}",)), INVALID),
    "an upper-case trust domain": (of(uris=("spiffe://Example.org/a",)), INVALID),
    "an authority as a leaf": (of(ca=True), INVALID),
    "a leaf that may sign certificates": (
        of(usage=frozenset({"digital_signature", "key_cert_sign"})),
        INVALID,
    ),
    "a leaf that may sign revocation lists": (
        of(usage=frozenset({"digital_signature", "crl_sign"})),
        INVALID,
    ),
    "a leaf that may not sign": (of(usage=frozenset({"key_agreement"})), INVALID),
    "no key usage": (of(usage=None), INVALID),
    "key usage not critical": (of(usage_critical=False), INVALID),
    "for clients alone": (of(extended=(ExtendedKeyUsageOID.CLIENT_AUTH,)), INVALID),
    "for code": (of(extended=(ExtendedKeyUsageOID.CODE_SIGNING,)), INVALID),
    "expired": (of(end=NOW), EXPIRED),
    "not yet": (of(start=NOW + timedelta(seconds=1)), EXPIRED),
    "signed by a leaf": (by_a_leaf, INVALID),
    "an intermediate that is none": (by_an_authority(ca=False), INVALID),
    "an intermediate that may not sign": (by_an_authority(usage=frozenset({"crl_sign"})), INVALID),
    "an intermediate without key usage": (by_an_authority(usage=None), INVALID),
    "an intermediate that expired": (by_an_authority(end=NOW - timedelta(days=1)), INVALID),
    "an intermediate that is a workload": (by_an_authority(uris=(f"spiffe://{DOMAIN}/ca",)), INVALID),
    "longer than the authority allows": (below_a_path_length, INVALID),
    "another authority for our domain": (FOREIGN.chain, INVALID),
    "another trust domain": (
        lambda: FOREIGN.chain(Shape(uris=("spiffe://other.example/a",))),
        Reason.BUNDLE_UNTRUSTED,
    ),
    "the authority itself": (lambda: (der(OURS.root.certificate),), INVALID),
}


@pytest.mark.parametrize(("make", "expected"), BAD_CHAINS.values(), ids=BAD_CHAINS)
def test_a_certificate_that_breaks_one_rule_is_refused(
    make: Callable[[], tuple[bytes, ...]], expected: Reason, bundles: Bundles
) -> None:
    assert reason(lambda: by_certificate(make(), bundles)) is expected


def test_an_authority_names_nobody_of_another_domain_that_is_trusted_too(folder: Path) -> None:
    FOREIGN.write(folder)
    chain = OURS.chain(Shape(uris=("spiffe://other.example/a",)))
    assert reason(lambda: by_certificate(chain, Bundles(folder))) is Reason.SVID_INVALID


# -- bundles -----------------------------------------------------------------------------------------


def test_a_bundle_of_the_specification() -> None:
    """Entries of unknown use or type are ignored, and so are more certificates than one."""
    value = json.loads(OURS.bundle())
    value["keys"] += [
        {"kty": "EC", "use": "wit-svid"},
        {"kty": "EC"},
        {"kty": "OKP", "use": "jwt-svid", "kid": "ed"},
        {"kty": "EC", "use": "x509-svid"},
    ]
    value["keys"][0]["x5c"].append("AAAA")
    value["something_else"] = 1
    found = parse_bundle(json.dumps({**value, "spiffe_refresh_hint": 60}).encode(), DOMAIN)
    assert len(found.x509) == 1
    assert set(found.jwt) == set(OURS.jwt_keys)
    assert (found.refresh, found.sequence) == (timedelta(seconds=60), 1)
    assert parse_bundle(b'{"keys":[]}', DOMAIN).refresh == DEFAULT_REFRESH


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b'{"keys":1}',
        b'{"keys":[1]}',
        b'{"keys":[],"spiffe_refresh_hint":-1}',
        b'{"keys":[],"spiffe_refresh_hint":"soon"}',
        b'{"keys":[{"use":"x509-svid","x5c":["AAAA"]}]}',
        b'{"keys":[{"use":"x509-svid","x5c":["!"]}]}',
        b'{"keys":[{"use":"jwt-svid","kty":"EC","kid":"a"}]}',
        b'{"keys":[{"use":"jwt-svid","kty":"EC","crv":"P-256","x":"AA","y":"AA","kid":"a"}]}',
    ],
)
def test_what_is_no_bundle(content: bytes, folder: Path) -> None:
    (folder / f"{DOMAIN}.json").write_bytes(content)
    assert reason(lambda: by_token(OURS.token(), Bundles(folder))) is Reason.BUNDLE_UNTRUSTED


def test_a_private_key_in_a_bundle_is_refused() -> None:
    entry = {**ECAlgorithm.to_jwk(new_key(), as_dict=True), "use": "jwt-svid", "kid": "a"}
    with pytest.raises(UsageError, match="private"):
        parse_bundle(json.dumps({"keys": [entry]}).encode(), DOMAIN)


def test_a_bundle_without_keys_trusts_nobody(folder: Path) -> None:
    (folder / f"{DOMAIN}.json").write_bytes(b'{"keys":[]}')
    assert reason(lambda: by_token(OURS.token(), Bundles(folder))) is Reason.SVID_INVALID
    assert reason(lambda: by_certificate(OURS.chain(), Bundles(folder))) is Reason.BUNDLE_UNTRUSTED


def test_a_bundle_is_read_again_when_its_hint_says_so(folder: Path) -> None:
    domain = TrustDomain(extra={"spiffe_refresh_hint": 60})
    path = domain.write(folder)
    bundles = Bundles(folder)
    token = domain.token()
    by_token(token, bundles)
    domain.jwt_keys = {"k2": new_key()}
    domain.extra["spiffe_sequence"] = 2
    domain.write(folder)
    by_token(token, bundles, NOW + timedelta(seconds=59))
    assert reason(lambda: by_token(token, bundles, NOW + timedelta(seconds=60))) is Reason.SVID_INVALID
    by_token(domain.token(kid="k2"), bundles, NOW + timedelta(seconds=60))
    path.unlink()
    later = NOW + timedelta(seconds=120)
    assert reason(lambda: by_token(domain.token(kid="k2"), bundles, later)) is Reason.BUNDLE_UNTRUSTED


def test_an_older_bundle_is_not_put_back(folder: Path) -> None:
    domain = TrustDomain(extra={"spiffe_sequence": 7, "spiffe_refresh_hint": 0})
    domain.write(folder)
    bundles = Bundles(folder)
    by_token(domain.token(), bundles)
    domain.extra["spiffe_sequence"] = 6
    domain.write(folder)
    assert reason(lambda: by_token(domain.token(), bundles)) is Reason.BUNDLE_UNTRUSTED


def test_a_bundle_that_others_could_write_is_refused(folder: Path) -> None:
    (folder / f"{DOMAIN}.json").chmod(0o666)
    assert reason(lambda: by_token(OURS.token(), Bundles(folder))) is Reason.PATH_UNSAFE


@pytest.mark.parametrize("domain", ["..", "../x", "a/b", "", "A"])
def test_a_trust_domain_is_no_path(domain: str, folder: Path) -> None:
    assert reason(lambda: Bundles(folder / "sub").get(domain, NOW)) is Reason.BUNDLE_UNTRUSTED


# -- local peers, units ------------------------------------------------------------------------------


def test_a_local_process_is_its_user_groups_and_unit(bundles: Bundles) -> None:
    peer = Peer(uid=7, account="svc", groups=("staff",), cgroup="/system.slice/backup.service/worker")
    assert resolve(peer, bundles, NOW) == Principal(
        uid=7, account="svc", groups=("staff",), unit="backup.service"
    )


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("/system.slice/backup.service", "backup.service"),
        ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"),
        ("/system.slice/backup.service/sub/other.service", "backup.service"),
        ("/init.scope", "init.scope"),
        ("/user.slice/user-7.slice/session-3.scope", "session-3.scope"),
        # a user's own manager: what it starts has no name that the host goes by
        ("/user.slice/user-7.slice/user@7.service/app.slice/backup.service", "user@7.service"),
        ("/", None),
        ("/system.slice", None),
        ("/docker/0123", None),
        ("/docker/system.slice/backup.service", None),
        ("/egs.slice/agents", None),
        ("", None),
        ("/../backup.service", None),
    ],
)
def test_the_unit_of_a_cgroup(cgroup: str, unit: str | None) -> None:
    assert unit_of(cgroup) == unit
    path = unit_cgroup(cgroup)
    assert path is None if unit is None else (path is not None and f"{cgroup}/".startswith(f"{path}/"))


@pytest.mark.parametrize("name", ["a.slice", "a", "a/b.service", ".service", "a.target", "a.service\n"])
def test_no_unit_names(name: str) -> None:
    assert not is_unit_name(name)


# -- whatever comes ----------------------------------------------------------------------------------

PARTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["alg", "kid", "typ", "sub", "aud", "exp", "iat", "nbf", "keys", "use", "kty", "x5c", "crv", "x"]
)
OBJECTS = st.dictionaries(
    NAMES, PARTS | st.sampled_from(["ES256", "k1", "JWT", AGENT, AUDIENCE, "EC", "jwt-svid"]), max_size=6
)


def encoded(value: object) -> str:
    return urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    folder = tmp_path_factory.mktemp("bundles")
    OURS.write(folder)
    return Bundles(folder)


@given(
    st.text(max_size=80)
    | st.builds(lambda head, said: f"{encoded(head)}.{encoded(said)}.AAAA", OBJECTS, OBJECTS)
)
def test_no_token_does_anything_but_be_refused(lasting: Bundles, token: str) -> None:
    with pytest.raises(Refused):
        by_token(token, lasting)


@given(OBJECTS)
def test_signed_nonsense_is_refused_or_names_its_workload(lasting: Bundles, claims: dict[str, Any]) -> None:
    """By a good key of our domain: what it says must still be a JWT-SVID."""
    token = jwt.PyJWS().encode(
        json.dumps(claims).encode(), OURS.jwt_keys["k1"], "ES256", {"kid": "k1", "typ": "JWT"}
    )
    try:
        found = by_token(token, lasting)
    except Refused:
        return
    assert found.spiffe_id == claims["sub"]


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # cryptography warns of what we refuse
@given(st.data())
def test_a_flipped_byte_of_a_certificate_names_nobody_else(lasting: Bundles, data: st.DataObject) -> None:
    content = bytearray(CHAIN[0])
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = by_certificate((bytes(content),), lasting)
    except Refused:
        return
    # How many bits of the signature's last byte are unused is not signed, and changes nothing.
    assert found == by_certificate(CHAIN[:1], lasting)


@given(st.binary(max_size=60) | OBJECTS.map(lambda one: json.dumps({"keys": [one]}).encode()))
def test_no_bundle_is_a_traceback(content: bytes) -> None:
    try:
        parse_bundle(content, DOMAIN)
    except UsageError as error:
        problem = error.reason
    else:
        problem = Reason.BUNDLE_UNTRUSTED
    assert problem is Reason.BUNDLE_UNTRUSTED
