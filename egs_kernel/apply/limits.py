"""Resource limits."""

import resource


def apply(step: dict[str, dict[str, int]]) -> None:
    """Lower both halves of each; a hard limit that is lower already stays."""
    for name, value in step["values"].items():
        which = getattr(resource, f"RLIMIT_{name.upper()}")
        _, hard = resource.getrlimit(which)
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (limit, limit))
