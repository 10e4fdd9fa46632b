"""Who asks: users, groups, systemd units, SPIFFE workloads. Pure: evidence in, a principal or a refusal out."""
