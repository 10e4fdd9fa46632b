"""The library that makes system call filters: load it, and take what it made."""

from __future__ import annotations

import os
from typing import Any

from egs_kernel.errors import Refused
from egs_kernel.model import Reason


def load_library(field: str) -> Any:
    """The module pyseccomp, which raises where libseccomp is not installed. Only what compiles needs it.

    Raises:
        Refused: it is not installed; the message names the artifact's field.
    """
    try:
        import pyseccomp  # noqa: PLC0415 - see above
    except (ImportError, RuntimeError) as error:
        raise Refused(
            Reason.CONSTRAINT_UNENFORCEABLE,
            f"{field}: libseccomp is not installed on this host",
            "Install it (Debian: apt-get install libseccomp2).",
        ) from error
    return pyseccomp


def export(program: Any) -> bytes:
    """The `struct sock_filter` array of a compiled filter, in this host's byte order."""
    with os.fdopen(os.memfd_create("egs-seccomp", os.MFD_CLOEXEC), "w+b") as file:
        program.export_bpf(file)
        file.seek(0)
        return file.read()
