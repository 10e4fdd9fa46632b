"""The record: every request, decision, verification, exec and outcome, durable before it is acknowledged."""
