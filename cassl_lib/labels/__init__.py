"""The pseudo-label store: writing, reading, import from and export to COCO JSON."""
