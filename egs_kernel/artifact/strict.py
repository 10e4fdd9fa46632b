"""What every part of an artifact is made of."""

from __future__ import annotations

from typing import Final

import msgspec

# No control characters (a terminal obeys them) and no bidirectional overrides (a reader is misled by
# them). Written as "nothing forbidden anywhere", because `$` also matches before a final newline.
PLAIN: Final = r"^(?![\s\S]*[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069])"
PATH: Final = PLAIN + r"(?![\s\S]*//)(?![\s\S]*/\.{1,2}(/|$))(?![\s\S]+/$)/"
"""An absolute path in its one spelling."""
_FORMS: Final = {PATH: "a path that is not absolute, or has `//`, `.`, `..` or a slash at its end"}


def misfit(error: msgspec.ValidationError) -> str:
    """What does not fit its type, and where. A regular expression helps nobody: it is said in words."""
    problem, at, place = str(error).partition(" - at ")
    if "matching regex" in problem:
        others = "characters or a form that this field cannot have"
        problem = next((words for form, words in _FORMS.items() if problem.endswith(repr(form))), others)
    return f"{problem}{at}{place}"


class Strict(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"
):
    """Immutable, strict, and written without the fields that say nothing."""
