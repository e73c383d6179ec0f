"""Measurements: benchmarks of detector and store, the cost of a chain before it is run."""
