"""The embedded scenes: drawn by code, written once as a real COCO dataset."""

from cassl_lib.data.scenes.dataset import SPLITS, VERSION, SceneFiles, SceneSpec, prepare, redraw, verify
from cassl_lib.errors import SceneError

__all__ = ["SPLITS", "VERSION", "SceneError", "SceneFiles", "SceneSpec", "prepare", "redraw", "verify"]
