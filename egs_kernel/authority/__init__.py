"""The authority: intent in, artifact or reasoned denial out. It has a process, a user, a key and a record of its own."""
