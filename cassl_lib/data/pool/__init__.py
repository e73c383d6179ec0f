"""Pools of unlabeled images: what they are given as, the index, near-duplicates of validation images."""
