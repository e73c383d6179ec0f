"""Weights of other libraries in: AdelaiDet's FCOS and CondInst as ready detectors, and `load` for every other kind."""

from cassl_lib.models.weights.adelaidet import from_adelaidet
from cassl_lib.models.weights.load import LoadReport, load, read_weights
from cassl_lib.models.weights.names import to_our_names

__all__ = ["LoadReport", "from_adelaidet", "load", "read_weights", "to_our_names"]
