"""Write the JSON Schemas into the package."""

from __future__ import annotations

import json
from pathlib import Path

from egs_kernel.artifact.schema import SCHEMAS, generate

for name in SCHEMAS:
    Path(__file__).with_name(name).write_text(f"{json.dumps(generate(name), indent=2)}\n", encoding="utf-8")
