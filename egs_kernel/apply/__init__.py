"""What the launcher does to itself, when the daemon asks for it: one module for each kind of step.

Imported at a launch with constraints. Nothing that is said here is believed: the daemon reads everything from the kernel
afterwards.
"""

# ruff: noqa: PLC0415 - nothing is imported before it is needed

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MODULES = ("no_new_privs", "umask", "capabilities", "limits", "seccomp")


class UnknownStepError(Exception):
    """The daemon asks for something that this version cannot do."""


def load() -> None:
    """Import what steps may take, before anybody asks for any."""
    decode(b"{}")
    for name in MODULES:
        _module(name)


def apply(answer: bytes) -> None:
    """Do the steps that the daemon's message lists, in its order. Irrevocable.

    Raises:
        UnknownStepError: one of them is unknown; nothing was done then.
        OSError: the kernel refused one.
    """
    steps = decode(answer)["steps"]
    # All modules first: a step may forbid what importing takes.
    chosen = [(_module(step["step"]), step) for step in steps]
    for module, step in chosen:
        module.apply(step)


def decode(content: bytes) -> "Any":
    """JSON. `json` imports 20 modules in Python for what its scanner, in C, does alone."""
    from _json import make_scanner

    class Context:
        """What `json.JSONDecoder` has."""

        strict = True
        object_hook = object_pairs_hook = array_hook = None
        parse_float, parse_int, parse_constant = float, int, float

    scan = make_scanner(Context)  # type: ignore[arg-type]  # typeshed asks for a scanner where attributes do
    return scan(content.decode(), 0)[0]


def _module(name: str) -> "Any":
    if name not in MODULES:
        raise UnknownStepError(name)
    full = f"{__name__}.{name}"
    __import__(full)
    return sys.modules[full]
