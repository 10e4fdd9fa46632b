"""What every part of an artifact is made of."""

from __future__ import annotations

from typing import Final

import msgspec

# No control characters (a terminal obeys them) and no bidirectional overrides (a reader is misled by
# them). Written as "nothing forbidden anywhere", because `$` also matches before a final newline.
PLAIN: Final = r"^(?![\s\S]*[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069])"


class Strict(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"
):
    """Immutable, strict, and written without the fields that say nothing."""
