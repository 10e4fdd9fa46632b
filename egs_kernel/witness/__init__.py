"""The witness (C2SP tlog-witness): cosigns a log's checkpoint only if it continues the last one that it cosigned."""
