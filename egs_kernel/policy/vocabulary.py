"""The Cedar schema: what policies can talk about."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

SCHEMA: Final = files(__package__).joinpath("vocabulary.cedarschema").read_text(encoding="utf-8")
"""The schema's text. A set carries the one that it was checked against; this version takes this one alone."""
