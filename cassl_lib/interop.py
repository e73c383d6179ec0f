"""Weights of other libraries.

`from_adelaidet` builds a detector from AdelaiDet's FCOS or CondInst weights. `load` fills an existing detector with our
own weights or those of AdelaiDet, detectron2, torchvision's FCOS and pyramids, and Swin transformers of timm, Microsoft
and detectron2. ModelConfig(pretrained=FILE) loads only the backbone, from the same formats.
"""

from cassl_lib.models.weights.adelaidet import from_adelaidet
from cassl_lib.models.weights.load import LoadReport, load, read_weights
from cassl_lib.models.weights.names import to_our_names

__all__ = ["LoadReport", "from_adelaidet", "load", "read_weights", "to_our_names"]
