"""`--key` and `--passphrase-file`, of every command that signs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from egs_kernel.errors import UsageError
from egs_kernel.model import Reason

if TYPE_CHECKING:
    import argparse

    from egs_kernel.sslib import Signer

KEY = "KEY"
"""What the help calls a key: a file or a URI (docs/keys.md)."""


def add_keys_option(parser: argparse.ArgumentParser) -> None:
    """Several keys, one at least: `open_keys` opens them."""
    parser.add_argument(
        "--key",
        action="append",
        required=True,
        metavar=KEY,
        help="sign with this key, a file or a URI (pkcs11:…, hashivault:…, …); repeat for several",
    )
    add_passphrase_option(parser)


def add_passphrase_option(parser: argparse.ArgumentParser) -> None:
    """Where a passphrase or PIN is."""
    parser.add_argument(
        "--passphrase-file",
        type=Path,
        metavar="FILE",
        help="the passphrase or PIN of the key, in a file of mode 0600; otherwise it is asked for at the terminal",
    )


def open_keys(options: argparse.Namespace) -> list[Signer]:
    """The signers of `--key`.

    Raises:
        EgsError: as `open_signer`; or the same key was given twice.
    """
    signers = [open_key(where, options.passphrase_file) for where in options.key]
    if len({signer.public_key.keyid for signer in signers}) != len(signers):
        raise UsageError(Reason.USAGE, "the same key was given twice", "Give each --key once.")
    return signers


def open_key(where: str, passphrase_file: Path | None) -> Signer:
    """The signer of one key.

    Raises:
        EgsError: as `open_signer`.
    """
    from egs_kernel.trust.passphrases import Passphrases  # noqa: PLC0415 - cryptography, only to sign
    from egs_kernel.trust.signers import open_signer  # noqa: PLC0415 - as above

    return open_signer(where, Passphrases.of_process(passphrase_file))
