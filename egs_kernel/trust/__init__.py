"""Keys, and who may sign for what."""
