"""Drift: what was authorized, what is seen, what is found of it, and what is done. Pure; `egs_kernel/monitor/` touches the host."""
