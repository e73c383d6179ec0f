"""Evaluation of detections (COCO's AP and AR, panoptic quality) and of pseudo labels (box matching)."""

from cassl_lib.evaluation.coco import evaluate
from cassl_lib.evaluation.matching import edge_errors, label_quality

__all__ = ["edge_errors", "evaluate", "label_quality"]
