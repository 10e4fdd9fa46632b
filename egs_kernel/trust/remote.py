"""Keys that never leave a token or a service: securesystemslib's signers, by URI.

What signs elsewhere is checked here: no signature leaves that the public key does not verify.
"""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes, urlencode

from egs_kernel.errors import EgsError, HostLacks, Unreachable, UsageError
from egs_kernel.model import Reason
from egs_kernel.ownership import read_private_file
from egs_kernel.sslib import (
    Key,
    SecretsHandler,
    Signature,
    Signer,
    UnsupportedLibraryError,
    UnverifiedSignatureError,
    clients,
)
from egs_kernel.trust.keys import KEY_LIMIT, algorithm_of, load_public, public_pem

if TYPE_CHECKING:
    from collections.abc import Callable

    from egs_kernel.trust.passphrases import Passphrases

_T = TypeVar("_T")

_MODULE: Final = "PYKCS11LIB"
"""securesystemslib takes the path of the PKCS#11 module from this variable."""
_PUBLIC_KEY: Final = "public-key"
_WRONG_PIN = frozenset({"PinIncorrect", "PinInvalid", "PinLenRange", "PinLocked", "PinExpired"})
_ADVICE: Final = "docs/keys.md shows the URIs."


@dataclass(frozen=True)
class _Place:
    """A URI, taken apart: what securesystemslib calls it, and how it finds the public key."""

    uri: str
    find: Callable[[type[Any], SecretsHandler], tuple[str, Key]]
    module: str | None = None
    pin_file: Path | None = None


@dataclass(frozen=True)
class _Service:
    extra: str
    signer: str
    parse: Callable[[str, dict[str, str]], _Place]


def open_remote(where: str, passphrases: Passphrases) -> Signer:
    """The signer of a key by URI.

    Raises:
        UsageError: the URI is malformed, or the key of a kind that is not supported.
        HostLacks: what opens it is not installed.
        Unreachable: the token or service does not answer, or refuses.
    """
    scheme, _, rest = where.partition(":")
    service = SERVICES[scheme]
    rest, query = _split(where, rest)
    place = service.parse(rest, query)
    expected = query.pop(_PUBLIC_KEY, None)
    if query:
        raise _malformed(where, f"{min(query)} is no attribute that is understood here")
    known = None if expected is None else _read_public(Path(expected))
    pin = _once(lambda: _pin(place, passphrases, where))
    if place.module is not None:
        os.environ[_MODULE] = place.module

    def connect() -> Signer:
        kind = clients(service.signer)
        uri, key = place.find(kind, pin) if known is None else (place.uri, known)
        opened: Signer = kind.from_priv_key_uri(uri, _normal(key, where), pin)  # type: ignore[attr-defined] # of every Signer
        return opened

    return _Remote(where, _translated(where, service.extra, connect), service.extra)


class _Remote(Signer):
    """One signature at a time, each verified before anybody gets it."""

    def __init__(self, where: str, signer: Signer, extra: str) -> None:
        self._where = where
        self._signer = signer
        self._extra = extra
        self._lock = threading.Lock()

    @classmethod
    def from_priv_key_uri(
        cls,
        priv_key_uri: str,
        public_key: Key,  # noqa: ARG003 - securesystemslib's interface
        secrets_handler: SecretsHandler | None = None,  # noqa: ARG003 - as above
    ) -> Signer:
        """Not by securesystemslib's URIs: `trust.signers.open_signer` opens them.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{priv_key_uri}: opened by open_signer alone")

    @property
    def public_key(self) -> Key:
        """The public half."""
        return self._signer.public_key

    def sign(self, payload: bytes) -> Signature:
        """Sign there, verify here.

        Raises:
            UsageError: KEY_SECRET_WRONG.
            Unreachable: the token or service does not answer or refuses, or its signature is not this key's.
        """

        def checked() -> Signature:
            signature = self._signer.sign(payload)
            try:
                self.public_key.verify_signature(signature, payload)
            except UnverifiedSignatureError as error:
                raise Unreachable(
                    Reason.SIGNER_UNAVAILABLE,
                    f"{self._where}: what came back is no signature by {self.public_key.keyid[:16]}",
                    "Check which key signs there: egs keys public --key KEY --out N.pub",
                ) from error
            return signature

        with self._lock:  # a token has one session that is logged in
            return _translated(self._where, self._extra, checked)


# the URIs


def _token(rest: str, query: dict[str, str]) -> _Place:
    """RFC 7512, of which a key is found by its id alone: securesystemslib knows no more."""
    where = f"pkcs11:{rest}"
    attributes: dict[str, bytes] = {}
    for part in rest.split(";"):
        name, equals, value = part.partition("=")
        if not equals or name in attributes:
            raise _malformed(where, f"{part!r} is no attribute, or is there twice")
        attributes[name] = unquote_to_bytes(value)
    identity = attributes.pop("id", b"")
    label = attributes.pop("token", b"").decode("utf-8", "replace")
    if attributes.pop("type", b"private") != b"private" or attributes:
        raise _malformed(where, "a key is named by token and id, and nothing else of it is looked at")
    if not identity:
        raise _malformed(where, "it names no id")
    if "pin-value" in query:
        raise _malformed(where, "a PIN in a URI can be read by every process of this host")
    pin_file = query.pop("pin-source", None)
    number = int.from_bytes(identity, "big")
    return _Place(
        uri=f"hsm:{number}?{urlencode({'label': label})}" if label else f"hsm:{number}",
        find=lambda kind, pin: kind.import_(number, label or None, pin),
        module=_module(where, query.pop("module-path", None)),
        pin_file=None if pin_file is None else Path(pin_file.removeprefix("file:")),
    )


def _vault(rest: str, query: dict[str, str]) -> _Place:
    name, _, version = rest.partition("/")
    if not name or (version and not version.isdecimal()):
        raise _malformed(f"hashivault:{rest}", "it is NAME or NAME/VERSION")
    if _PUBLIC_KEY in query and not version:
        raise _malformed(f"hashivault:{rest}", "with a public key it takes the version, too")

    def find(kind: type[Any], _pin: SecretsHandler) -> tuple[str, Key]:
        uri, key = kind.import_(name)
        return _newest(f"hashivault:{rest}", uri, key, f"hv:{name}/{version}" if version else None)

    return _Place(uri=f"hv:{name}/{version}", find=find)


def _azure(rest: str, _query: dict[str, str]) -> _Place:
    parts = re.fullmatch(r"//([^./]+)\.vault\.azure\.net/keys/([^/]+)/([^/]+)", rest)
    if parts is None:
        raise _malformed(f"azurekms:{rest}", "it is //VAULT.vault.azure.net/keys/NAME/VERSION")

    def find(kind: type[Any], _pin: SecretsHandler) -> tuple[str, Key]:
        uri, key = kind.import_(parts[1], parts[2])
        return _newest(f"azurekms:{rest}", uri, key, f"azurekms:{rest}")

    return _Place(uri=f"azurekms:{rest}", find=find)


def _by_name(scheme: str) -> Callable[[str, dict[str, str]], _Place]:
    def parse(rest: str, _query: dict[str, str]) -> _Place:
        return _Place(uri=f"{scheme}:{rest}", find=lambda kind, _pin: kind.import_(rest))

    return parse


SERVICES: Final = {
    "pkcs11": _Service("hsm", "HSMSigner", _token),
    "hashivault": _Service("vault", "VaultSigner", _vault),
    "awskms": _Service("awskms", "AWSSigner", _by_name("awskms")),
    "gcpkms": _Service("gcpkms", "GCPSigner", _by_name("gcpkms")),
    "azurekms": _Service("azurekms", "AzureSigner", _azure),
}
"""By the scheme of the URI; `extra` is what pip installs for it."""


def _split(where: str, rest: str) -> tuple[str, dict[str, str]]:
    rest, _, text = rest.partition("?")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text))
    except ValueError as error:
        raise _malformed(where, "what follows its ? is malformed") from error
    query = dict(pairs)
    if not rest or len(query) != len(pairs):
        raise _malformed(where, "it is empty, or says something twice")
    if not where.isascii() or any("\0" in value for value in query.values()):
        raise _malformed(where, "it has characters that a URI has in another form, or a file's name has not")
    return rest, query


def _module(where: str, named: str | None) -> str:
    module = named or os.environ.get(_MODULE)
    if not module:
        raise _malformed(where, "it names no PKCS#11 module")
    if not Path(module).is_file():
        raise HostLacks(
            Reason.SIGNER_UNAVAILABLE,
            f"{where}: the PKCS#11 module {module} does not exist",
            "Install it, or correct module-path.",
        )
    return module


def _newest(where: str, found: str, key: Key, wanted: str | None) -> tuple[str, Key]:
    """Services tell the public key of the newest version alone."""
    if wanted is not None and found != wanted:
        raise UsageError(
            Reason.USAGE,
            f"{where}: the newest version there is {found.rpartition('/')[2]}",
            f"To sign with an older one, add ?{_PUBLIC_KEY}=FILE.pub of that version.",
        )
    return found, key


def _normal(key: Key, where: str) -> Key:
    """The key as its .pub file gives it, so that its id is the same."""
    algorithm_of(key)
    return load_public(public_pem(key).encode(), where)


def _read_public(path: Path) -> Key:
    try:
        content = read_private_file(path, KEY_LIMIT)
    except OSError as error:
        raise UsageError(
            Reason.NOT_FOUND, f"cannot read {path}: {error.strerror}", "Name the .pub file of the key."
        ) from error
    return load_public(content, str(path))


def _pin(place: _Place, passphrases: Passphrases, where: str) -> str:
    if place.pin_file is not None:
        return type(passphrases)(place.pin_file).get("pin", where)
    return passphrases.get("pin", where)


def _once(get: Callable[[], str]) -> SecretsHandler:
    """Ask at most once; the token asks at each signature."""
    known: list[str] = []

    def answer(_what: str) -> str:
        if not known:
            known.append(get())
        return known[0]

    return answer


def _translated(where: str, extra: str, act: Callable[[], _T]) -> _T:
    try:
        return act()
    except EgsError:
        raise
    except UnsupportedLibraryError as error:
        raise HostLacks(
            Reason.SIGNER_UNAVAILABLE,
            f"{where} takes the extra {extra}, which is not installed",
            f"Run: pip install 'egs-kernel[{extra}]'",
        ) from error
    except Exception as error:  # each client has errors of its own, and securesystemslib passes them on
        name = type(error).__name__
        if name in _WRONG_PIN:
            raise UsageError(
                Reason.KEY_SECRET_WRONG, f"{where}: the token refuses this PIN ({name})", "Give its user PIN."
            ) from error
        said = " ".join(str(error).split())  # some say it in several lines
        raise Unreachable(
            Reason.SIGNER_UNAVAILABLE, f"{where}: {name}: {said}", "Check that it can be reached; " + _ADVICE
        ) from error


def _malformed(where: str, problem: str) -> UsageError:
    return UsageError(Reason.USAGE, f"{where}: {problem}", _ADVICE)
