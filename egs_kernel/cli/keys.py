"""`egs keys`: key pairs, and the public half of a key that is elsewhere."""

from __future__ import annotations

from getpass import getpass
from pathlib import Path
from typing import TYPE_CHECKING

from egs_kernel.cli.output import print_json, print_lines
from egs_kernel.cli.signing import KEY, add_passphrase_option, open_key
from egs_kernel.errors import ExitCode, UsageError
from egs_kernel.model import Reason
from egs_kernel.trust import keys
from egs_kernel.trust.passphrases import Passphrases

if TYPE_CHECKING:
    import argparse

    from egs_kernel.cli.main import Commands

_KEY_NAME_FORBIDDEN = frozenset("/\0")


def add_commands(commands: Commands) -> None:
    """Add `keys`."""
    words = commands.add_parser("keys", help="make key pairs").add_subparsers(metavar="WORD", required=True)
    generate = words.add_parser("generate", help="write N.key (mode 0600) and N.pub; never overwrites")
    generate.add_argument("--name", required=True, metavar="N", help="name of the files, without suffix")
    generate.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder; made when missing")
    generate.add_argument(
        "--algorithm",
        choices=[kind.value for kind in keys.Algorithm],
        default=keys.Algorithm.ED25519.value,
        help="ed25519+ml-dsa-65 is one key whose signature counts only when both verify (default: ed25519)",
    )
    generate.add_argument(
        "--encrypt", action="store_true", help="encrypt N.key; the passphrase is asked for at the terminal"
    )
    generate.add_argument(
        "--passphrase-file", type=Path, metavar="FILE", help="encrypt N.key with the passphrase in this file"
    )
    generate.set_defaults(run=_generate)
    public = words.add_parser("public", help="write the public half of a key, in a token or service too")
    public.add_argument(
        "--key", required=True, metavar=KEY, help="a key file or a URI (pkcs11:…, hashivault:…, …)"
    )
    public.add_argument("--out", required=True, type=Path, metavar="N.pub", help="never overwritten")
    add_passphrase_option(public)
    public.set_defaults(run=_public)
    for parser in (generate, public):
        parser.add_argument("--json", action="store_true", help="print one JSON object")


def _generate(options: argparse.Namespace) -> int:
    name: str = options.name
    if not name or name.startswith(".") or _KEY_NAME_FORBIDDEN & set(name) or not name.isprintable():
        raise UsageError(
            Reason.USAGE, f"{name!r} is no file name", "Name the key with letters, digits, - and _."
        )
    passphrase = _passphrase(options)
    signer = keys.generate(keys.Algorithm(options.algorithm))
    try:
        options.out.mkdir(mode=0o700, parents=True, exist_ok=True)
        private, public = keys.write_pair(signer, options.out, name, passphrase)
    except OSError as error:
        raise _unwritable(options.out, error) from error
    answer = {
        "keyid": signer.public_key.keyid,
        "algorithm": options.algorithm,
        "private": str(private),
        "public": str(public),
        "encrypted": passphrase is not None,
    }
    if options.json:
        print_json(answer)
    else:
        kept = "encrypted" if passphrase is not None else "keep it secret"
        print_lines([f"key      {answer['keyid']}", f"private  {private}  ({kept})", f"public   {public}"])
    return ExitCode.DONE


def _passphrase(options: argparse.Namespace) -> str | None:
    if options.passphrase_file is not None:
        return Passphrases(options.passphrase_file).get("passphrase", options.name)
    if not options.encrypt:
        return None
    asked = Passphrases.of_process()
    first = Passphrases(ask=asked.ask).get("passphrase", options.name)
    if getpass("once more: ") != first:
        raise UsageError(Reason.USAGE, "the two differ", "Type the same passphrase twice.")
    return first


def _public(options: argparse.Namespace) -> int:
    key = open_key(options.key, options.passphrase_file).public_key
    try:
        keys.write_public(key, options.out)
    except OSError as error:
        raise _unwritable(options.out, error) from error
    answer = {"keyid": key.keyid, "algorithm": keys.algorithm_of(key).value, "public": str(options.out)}
    if options.json:
        print_json(answer)
    else:
        print_lines([f"key      {key.keyid}", f"public   {options.out}"])
    return ExitCode.DONE


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        Reason.USAGE, f"cannot write {path}: {error.strerror}", "Name a folder that you can write."
    )
