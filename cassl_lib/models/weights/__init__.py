"""Weights in and out: names of public checkpoints, loading with a report, transfer of parts (Table 9)."""
