"""The embedded scenes: synthetic images drawn by code and written once as a COCO dataset."""

from cassl_lib.data.scenes.dataset import SPLITS, VERSION, SceneFiles, SceneSpec, prepare, redraw, unit_size, verify
from cassl_lib.errors import SceneError

__all__ = ["SPLITS", "VERSION", "SceneError", "SceneFiles", "SceneSpec", "prepare", "redraw", "unit_size", "verify"]
