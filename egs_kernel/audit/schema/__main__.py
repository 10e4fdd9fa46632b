"""Write the JSON Schema into the package."""

from __future__ import annotations

import json
from pathlib import Path

from egs_kernel.audit.schema import NAME, generate

Path(__file__).with_name(NAME).write_text(f"{json.dumps(generate(), indent=2)}\n", encoding="utf-8")
