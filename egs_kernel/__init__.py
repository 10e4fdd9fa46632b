"""egs-kernel: execution authorization on Linux (EGS-001)."""

__version__ = "0.1.0"
