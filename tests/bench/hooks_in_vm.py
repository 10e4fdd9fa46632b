"""Measures the gate's programs in a machine of tests/vm. pytest collects it only when it is named: tests/bench/hooks_command.py does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.bench.hooks import EMULATED, measure_hooks

pytestmark = pytest.mark.kernel
MEASURED = "hooks"


def test_measure_hooks(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    record_property(MEASURED, msgspec.to_builtins(measure_hooks(tmp_path, EMULATED, emulated=True)))
