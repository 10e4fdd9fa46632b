"""Asking the daemon, for the commands."""

from egs_kernel.daemon.client import ANSWER_SECONDS, ask, refusal

__all__ = ["ANSWER_SECONDS", "ask", "refusal"]
