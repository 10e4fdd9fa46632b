"""The gate: the eBPF enforcement point, its loader, and the daemon's door to it."""
