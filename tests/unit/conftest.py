"""Hypothesis without a clock."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# How long an example takes, or is made, says how busy the machine is, and nothing of what is tested.
settings.register_profile(
    "any machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")
