"""What was revoked, in files: one for each thing, and one for the newest signed list of each scope.

The record says it, too. Each of the two is enough, so neither a lost file nor a new record revives anything.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.artifact.envelope import parse_envelope
from egs_kernel.artifact.revocations import LIST_LIMIT, PAYLOAD_TYPE, parse_revocation_list
from egs_kernel.checks.revocation import SignedList
from egs_kernel.daemon.known import Known
from egs_kernel.durable import replace_file
from egs_kernel.errors import EgsError, RecordError, UsageError
from egs_kernel.model import Reason, Revoked
from egs_kernel.ownership import read_private_file, require_private_folder
from egs_kernel.trust.store import ANY_SCOPE

if TYPE_CHECKING:
    from pathlib import Path

_DIGEST = re.compile(r"[0-9a-f]{64}")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_THING = re.compile(r"(artifact|key|subject|policy|host)-[0-9a-f]{64}")
_LIST = re.compile(r"list(-[a-z0-9][a-z0-9._-]{0,31})?\.json")
_THING_LIMIT: Final = 4096
_LONG_AGO: Final = "1970-01-01T00:00:00Z"
"""Since when: an earlier version wrote an empty file, named by the id."""


class _Thing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a file. `thing` is the id."""

    thing: str
    since: str


def require_thing(kind: str, thing: str) -> str:
    """Check that `thing` can be the id of something of this kind.

    Raises:
        UsageError: it is not.
    """
    if not (_HOST if kind == "host" else _DIGEST).fullmatch(thing):
        advice = {
            "artifact": "An id has 64 hex digits; `egs show FILE` and `egs artifacts list` print it.",
            "key": "A key id has 64 hex digits; `egs trust list` prints it.",
            "host": "A host id has letters, digits and . _ : -; `egs status` prints it.",
        }
        raise UsageError(
            Reason.USAGE,
            f"{thing!r} is no {kind} id"
            if kind in ("artifact", "key", "host")
            else f"{thing!r} is no SHA-256",
            advice.get(kind, "A digest has 64 hex digits in lower case: sha256sum FILE"),
        )
    return thing


def read_revocations(folder: Path) -> Revoked:
    """What the files say; the folder is created when it is missing.

    Raises:
        UnsafePath: others could change the folder.
        RecordError: a file does not say what it should.
    """
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    require_private_folder(folder)
    tables: dict[str, dict[str, str]] = {kind: {} for kind in Revoked.__struct_fields__}
    for path in folder.iterdir():
        if _DIGEST.fullmatch(path.name):
            tables["artifact"][path.name] = _LONG_AGO
        elif _THING.fullmatch(path.name):
            kind = path.name.partition("-")[0]
            found = _read_thing(path, kind)
            tables[kind][found.thing] = found.since
    return Revoked(**tables)


def write_revocation(folder: Path, kind: str, thing: str, since: str) -> None:
    """Note, durably, that something is revoked.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / _name(kind, thing)
    if not path.exists():
        replace_file(path, msgspec.json.encode(_Thing(thing, since)), 0o644)


def read_lists(folder: Path, numbers: dict[str, tuple[int, str]]) -> dict[str, SignedList]:
    """The lists in force, by scope: those that the record names, or newer ones, which it had no time to name.

    They were verified when they were added, and nobody else writes here; what the record names is compared with it.
    """
    found: dict[str, SignedList] = {}
    for path in folder.iterdir():
        if not _LIST.fullmatch(path.name):
            continue
        try:
            envelope = parse_envelope(read_private_file(path, LIST_LIMIT), PAYLOAD_TYPE, LIST_LIMIT)
            content = parse_revocation_list(envelope.payload)
        except (OSError, EgsError):
            continue  # as if it were missing: its scope refuses everything, and says that it is
        digest = hashlib.sha256(envelope.payload).hexdigest()
        number, known = numbers.get(content.scope, (0, ""))
        if path.name == _list_name(content.scope) and (
            content.number > number or (content.number, digest) == (number, known)
        ):
            found[content.scope] = SignedList(digest, content, tuple(sorted(envelope.signatures)))
    return found


def known_of(folder: Path, said: Revoked, numbers: dict[str, tuple[int, str]]) -> Known:
    """All that is known at a start: what was said here, by files and record, and the lists that are in force."""
    lists = read_lists(folder, numbers)
    newest = {scope: (found.content.number, found.digest) for scope, found in lists.items()}
    return Known(said, numbers | newest, lists)


def write_list(folder: Path, scope: str, content: bytes) -> None:
    """Put the newest list of a scope in the place of the one before.

    Raises:
        OSError: it cannot be written; the old one stays.
    """
    replace_file(folder / _list_name(scope), content, 0o644)


def _name(kind: str, thing: str) -> str:
    return f"{kind}-{thing if _DIGEST.fullmatch(thing) else hashlib.sha256(thing.encode()).hexdigest()}"


def _list_name(scope: str) -> str:
    return "list.json" if scope == ANY_SCOPE else f"list-{scope}.json"


def _read_thing(path: Path, kind: str) -> _Thing:
    try:
        found = msgspec.json.decode(read_private_file(path, _THING_LIMIT), type=_Thing)
    except (OSError, EgsError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _unreadable(path, str(error)) from error
    if path.name != _name(kind, found.thing):
        raise _unreadable(path, f"it is about {found.thing}")
    return found


def _unreadable(path: Path, why: str) -> RecordError:
    return RecordError(
        Reason.RECORD_CORRUPT,
        f"{path} does not say what is revoked: {why}",
        f"Look who changed it; what it named is in its name and in the record (egs audit query --type revocation). Then remove {path}.",
    )
