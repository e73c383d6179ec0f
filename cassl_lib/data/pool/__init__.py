"""Pools of unlabeled images: the formats they come in, the index, near-duplicates of validation images."""
