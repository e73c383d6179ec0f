"""Detectors and the transfer of their parts."""

from cassl_lib.config import ModelConfig
from cassl_lib.models.build import build_detector
from cassl_lib.models.condinst import CondInst
from cassl_lib.models.detector import Detector
from cassl_lib.models.fcos import FCOS
from cassl_lib.models.weights.transfer import TransferReport, copy_parts

__all__ = ["FCOS", "CondInst", "Detector", "ModelConfig", "TransferReport", "build_detector", "copy_parts"]
