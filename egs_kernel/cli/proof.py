"""`egs proof export | verify`: an execution, or its refusal, proven to somebody who has public keys alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from egs_kernel.audit.bundle import MAX_BUNDLE, build_bundle, cited_posture
from egs_kernel.audit.lineage import Lineage
from egs_kernel.audit.logkeys import read_keys
from egs_kernel.audit.notes import VerifierKey
from egs_kernel.audit.proven import STEPS, Step, verify_bundle
from egs_kernel.audit.signed import SignedTree
from egs_kernel.cli.audit.common import add_path
from egs_kernel.cli.audit.indexes import index_place, open_index
from egs_kernel.cli.files import read_head, replace_file
from egs_kernel.cli.output import print_json, print_lines
from egs_kernel.cli.tables import printable
from egs_kernel.errors import EgsError, ExitCode, UsageError
from egs_kernel.model import Reason
from egs_kernel.paths import Paths
from egs_kernel.trust.store import TrustStore

if TYPE_CHECKING:
    import argparse

    from egs_kernel.audit.bundle import Bundle
    from egs_kernel.audit.entries import Recorded
    from egs_kernel.audit.lineage import Link
    from egs_kernel.audit.proven import Proven
    from egs_kernel.cli.main import Commands

_PUBLISHED_WITHIN: Final = 5.0
"""Seconds that a running daemon takes at most to publish what is durable."""

_NAMED = 8
"""Executions that a message names, when somebody means more than one."""

_MARKS = {
    "passed": "\N{CHECK MARK}",
    "failed": "\N{BALLOT X}",
    "skipped": "\N{EN DASH}",
    "unreached": "\N{EN DASH}",
}
_NOTES = {"skipped": "  (there is none)", "unreached": "  (not checked)"}


def add_commands(commands: Commands) -> None:
    """Add `egs proof`."""
    proof = commands.add_parser(
        "proof", help="prove an execution, or its refusal, to others; verify such a proof"
    )
    words = proof.add_subparsers(title="commands", metavar="COMMAND", required=True)
    export = words.add_parser(
        "export",
        help="write a proof bundle",
        description="Write one file with everything that proves an execution: the artifact, every entry about it with its "
        "inclusion proof (C2SP tlog-proof), and the log's checkpoint, cosigned where there are witnesses. A refusal is "
        "proven the same way.",
    )
    export.add_argument(
        "wanted",
        metavar="EXECUTION|PID|entry:SEQ",
        help="an execution, a process (its last execution), or an entry about an exec or a request that was refused",
    )
    export.add_argument("--out", type=Path, required=True, metavar="FILE")
    export.add_argument("--json", action="store_true", help="print one JSON object")
    add_path(export, "--path")
    export.set_defaults(run=run_export)
    _add_verify(words)


def _add_verify(words: Commands) -> None:
    verify = words.add_parser(
        "verify",
        help="verify a proof bundle offline",
        description="Verify a proof bundle with public keys alone, step by step; exit code 1 with the place that is wrong. It "
        "takes nothing of the host that it is from.",
    )
    verify.add_argument("file", type=Path, metavar="FILE")
    verify.add_argument(
        "--trust",
        type=Path,
        metavar="DIR",
        help="who may sign artifacts: a trust folder (default: this host's)",
    )
    verify.add_argument(
        "--log-key",
        action="append",
        default=[],
        metavar="VKEY",
        help="a key of the log (egs audit key show, on its host); repeat for several (default: this host's log)",
    )
    verify.add_argument(
        "--witness",
        action="append",
        default=[],
        metavar="VKEY",
        help="a witness that must have cosigned; repeat for several",
    )
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    verify.set_defaults(run=run_verify)


# -- export --------------------------------------------------------------------------------------


def run_export(options: argparse.Namespace) -> int:
    """`egs proof export`.

    Raises:
        EgsError: there is no such execution, the log is not published so far, or the file cannot be written.
    """
    paths = Paths.from_environment()
    with open_index(options.path, index_place(options.path), options.cold) as (index, _log):
        links = Lineage(index).of(options.wanted, limit=_NAMED + 1)
        if len(links) != 1:
            raise UsageError(
                Reason.USAGE,
                f"{options.wanted} is more than one execution; a bundle is about one",
                f"Name one by its entry: {', '.join(f'entry:{link.subject.seq}' for link in links[-_NAMED:])}",
            )
        postures = index.find(type="posture", below=links[0].subject.seq + 1, last=True)
        posture = cited_posture(links[0].posture_digest, postures)
        _await_published(links[0], options)
        bundle = _best(links[0], posture, options, paths)
    replace_file(options.out, bundle.encode())
    answer = {
        "file": str(options.out),
        "subject": bundle.subject,
        "entries": [item.seq for item in bundle.records],
    }
    if options.json:
        print_json(answer | {"log_key": bundle.log_key, "signers": list(bundle.signers)})
    else:
        print_lines([f"{options.out}: {len(bundle.records)} entries about entry {bundle.subject}"])
        print_lines([f"egs proof verify {options.out} --trust DIR --log-key '{bundle.log_key}'"])
    return ExitCode.DONE


def _await_published(link: Link, options: argparse.Namespace) -> None:
    """Entries are durable before they are published: those of a moment ago are waited for. `_best` says what is not there."""
    last = max(item.seq for item in link.entries)
    deadline = time.monotonic() + _PUBLISHED_WITHIN
    while SignedTree(options.path, None, options.cold).size <= last and time.monotonic() < deadline:
        time.sleep(_PUBLISHED_WITHIN / 100)


def _best(link: Link, posture: Recorded | None, options: argparse.Namespace, paths: Paths) -> Bundle:
    """Under the checkpoint that witnesses cosigned, when it goes so far; else under the published one."""
    keys = read_keys(paths.log_keys).verifiers
    for checkpoint in (*_cosigned(paths.cosigned), None):
        tree = SignedTree(options.path, checkpoint, options.cold)
        signing = [key for key in reversed(keys) if any(key.is_named_by(one) for one in tree.note.signatures)]
        if not signing:
            continue
        if checkpoint is None or tree.size > max(item.seq for item in link.entries):
            return build_bundle(link, posture, tree, signing[0])
    raise EgsError(
        Reason.KEY_UNTRUSTED,
        f"the checkpoint in {options.path} is signed by no key of this host's log",
        "Export on the host of the log.",
    )


def _cosigned(path: Path) -> tuple[bytes, ...]:
    try:
        return (path.read_bytes(),)
    except OSError:
        return ()  # no witness has cosigned, or it is not for this user: the published one proves the same


# -- verify --------------------------------------------------------------------------------------


def run_verify(options: argparse.Namespace) -> int:
    """`egs proof verify`.

    Raises:
        EgsError: it does not verify, with the place; or a key or folder that is none.
    """
    paths = Paths.from_environment()
    content = read_head(options.file, MAX_BUNDLE + 1)
    trust = TrustStore.load(paths.trust if options.trust is None else options.trust)
    keys = [VerifierKey.parse(text) for text in options.log_key] or list(read_keys(paths.log_keys).verifiers)
    witnesses = [VerifierKey.parse(text) for text in options.witness]
    reached: list[Step] = []
    try:
        proven = verify_bundle(content, trust, keys, witnesses, reached.append)
    except EgsError as error:
        states = _states(reached, frozenset(), failed=True)
        if not options.json:
            print_lines(_lines(states))
            raise
        wrong = {"reason": error.reason.code, "message": error.message, "next_step": error.next_step}
        print_json({"verified": False, "steps": _objects(states), "error": wrong})
        return error.exit_code
    states = _states(reached, proven.skipped, failed=False)
    if options.json:
        print_json({"verified": True, "steps": _objects(states)} | _summary(proven))
    else:
        print_lines([*_lines(states), *_words(proven)])
    return ExitCode.DONE


def _states(reached: list[Step], skipped: frozenset[Step], *, failed: bool) -> dict[Step, str]:
    states = (
        dict.fromkeys(Step, "unreached")
        | dict.fromkeys(reached, "passed")
        | dict.fromkeys(skipped, "skipped")
    )
    if failed and reached:
        states[reached[-1]] = "failed"
    return states


def _lines(states: dict[Step, str]) -> list[str]:
    return [
        f" {_MARKS[state]} {int(step):2} {STEPS[step]}{_NOTES.get(state, '')}"
        for step, state in states.items()
    ]


def _objects(states: dict[Step, str]) -> list[dict[str, Any]]:
    return [{"number": int(step), "step": STEPS[step], "state": state} for step, state in states.items()]


def _summary(proven: Proven) -> dict[str, Any]:
    chain, tree = proven.chain, proven.checkpoint.checkpoint
    event, outcome = chain.event, chain.outcome
    verdict, reason = _verdict(proven)
    return {
        "ran": chain.ran,
        "verdict": verdict,
        "reason": reason,
        "enforced": None if event is None else event.enforced,
        "program": event.filename
        if event is not None
        else chain.intent.program
        if chain.intent is not None
        else None,
        "execution": str(event.execution) if event is not None and event.execution else None,
        "artifact": None if proven.artifact is None else proven.artifact.id,
        "signers": [] if proven.artifact is None else list(proven.artifact.signers),
        "exit_code": None if outcome is None else outcome.exit_code,
        "signal": None if outcome is None else outcome.signal,
        "origin": tree.origin,
        "size": tree.size,
        "root_hash": tree.root.hex(),
        "witnesses": sorted(str(witness) for witness in proven.checkpoint.witnesses),
        "entries": [item.seq for item in proven.bundle.records],
    }


def _verdict(proven: Proven) -> tuple[str, str]:
    chain = proven.chain
    judged = chain.decision if chain.event is None or (chain.ran and chain.decision) else chain.event
    return ("unknown", "unknown") if judged is None else (judged.verdict.name.lower(), judged.reason.code)


def _words(proven: Proven) -> list[str]:
    found = _summary(proven)
    if found["ran"]:
        how = f"ended by {found['signal']}" if found["signal"] else f"ended with {found['exit_code']}"
        what = (
            f"ran, and {how}"
            if proven.chain.outcome is not None
            else "ran; that it ended is not in the bundle"
        )
    else:
        what = "did not run"
    if found["enforced"] is False:
        what += " (observed only: its scope does not enforce)"
    by = (
        f"artifact {found['artifact']}, signed by {', '.join(found['signers'])}"
        if found["artifact"]
        else "no artifact"
    )
    return [
        printable(f"proven    {found['program']} {what}: {found['verdict']} {found['reason']}"),
        f"          {by}",
        printable(f"          log {found['origin']}, {found['size']} entries, root {found['root_hash']}"),
        *(printable(f"          cosigned by {witness}") for witness in found["witnesses"]),
    ]
