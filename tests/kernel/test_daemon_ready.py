"""READY=1 says that what stands is in the gate."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.running import Running

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]

LARGE = 1 << 30
"""Bytes of a program (a hole, on disk): reading them takes longer than anything else at a start."""


def test_a_daemon_that_is_ready_has_installed_what_stands(running: Running) -> None:
    """After a boot the gate is new, and services that are ordered after egsd start at once."""
    program = running.copy("/bin/true", "program")
    os.truncate(program, LARGE)
    running.add(running.issue(program))
    running.stop()
    running.instance.egs("gate", "unload")
    running.instance.egs("gate", "load")
    running.start()
    assert running.inside(str(program)) == 0
