"""The pseudo-label store: how it is written, read, imported and exported."""
