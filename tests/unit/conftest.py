"""Hypothesis without a clock; and in CI without chance."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# How long an example takes, or is made, says how busy the machine is, and nothing of what is tested. CI, which sets
# EGS_REQUIRE_KERNEL, judges a commit by the same examples each time; every other run looks for new ones.
settings.register_profile(
    "egs",
    settings(),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=os.environ.get("EGS_REQUIRE_KERNEL") == "1",
)
settings.load_profile("egs")
