"""The authorization artifact: an in-toto Statement in a DSSE envelope (docs/artifact.md). Pure."""
