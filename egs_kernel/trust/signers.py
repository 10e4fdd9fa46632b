"""Private keys wherever they are: a file, a PKCS#11 token, a key service. `open_signer` opens each by one word.

    /root/issuer.key                                    a PEM file, perhaps encrypted
    pkcs11:token=egs;id=%01?module-path=/usr/lib/….so   a token (RFC 7512)
    hashivault:NAME[/VERSION]                           Vault's transit engine
    awskms:KEY   gcpkms:projects/…   azurekms://VAULT/keys/NAME/VERSION

Each URI takes `?public-key=FILE.pub`: the public key to expect there, which is otherwise asked for there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from egs_kernel.errors import UsageError
from egs_kernel.model import Reason
from egs_kernel.trust.keys import load_private
from egs_kernel.trust.remote import SERVICES, open_remote

if TYPE_CHECKING:
    from egs_kernel.sslib import Signer
    from egs_kernel.trust.passphrases import Passphrases

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):")


def open_signer(where: str, passphrases: Passphrases) -> Signer:
    """The signer of a private key; `public_key` is its public half.

    Args:
        where: the path of a key file, or a URI.
        passphrases: where its passphrase or PIN comes from, if it takes one.

    Raises:
        UsageError: it is missing, unsafe, malformed, of a kind that is not supported, or its passphrase or PIN is wrong.
        HostLacks: what opens it is not installed.
        Unreachable: the token or service does not answer, or refuses.
    """
    scheme = _SCHEME.match(where)
    if scheme is not None and scheme[1] in SERVICES:
        return open_remote(where, passphrases)
    path = Path(where)
    if scheme is not None and not path.exists():
        raise UsageError(
            Reason.USAGE,
            f"{where} is neither a file nor a key of a kind that is known",
            f"Name a file, or a URI: {', '.join(f'{name}:…' for name in sorted(SERVICES))}",
        )
    return load_private(path, lambda: passphrases.get("passphrase", where))
