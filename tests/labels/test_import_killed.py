"""An import that is killed is resumed by the same command, and ends with the bytes of an undisturbed one."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cassl_lib import paths
from cassl_lib.errors import LabelingError
from cassl_lib.labels.coco import from_coco

IMPORT = """
import os, signal, sys
from cassl_lib import files
from cassl_lib.labels.coco import from_coco

moved, move = [], os.replace

def move_or_die(*names):
    moved.append(names)
    if len(moved) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    move(*names)

files.os.replace = move_or_die
from_coco(sys.argv[1], sys.argv[2], shard_size=2, images=os.path.dirname(sys.argv[1]))
"""


@pytest.fixture
def labels(tmp_path) -> Path:
    """Ten images of a folder and their labels, which make five shards."""
    images, annotations = [], []
    for number in range(10):
        images.append({"id": number, "file_name": f"{number}.png", "height": 20, "width": 30})
        Image.fromarray(np.full((20, 30, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
        annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": [1, 2, 10 + number, 9]})
    file = tmp_path / "labels.json"
    categories = [{"id": 1, "name": "thing"}]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def contents(store: Path) -> dict[str, bytes]:
    """Also of hidden files, but for the lock."""
    return {path.name: path.read_bytes() for path in store.iterdir() if path.name != ".lock"}


def test_a_killed_import_resumes_to_the_same_bytes(labels, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    from_coco(labels, whole, shard_size=2, images=tmp_path)
    for moves in (1, 4, 3):  # before the request, before a shard, before a shard's entry
        command = [sys.executable, "-c", IMPORT, str(labels), str(killed), str(moves)]
        assert subprocess.run(command, cwd=paths.REPOSITORY).returncode == -signal.SIGKILL
        assert list(killed.glob(".*.tmp"))
    finished = {path: path.stat().st_mtime_ns for path in killed.glob("shard-0000[01].*")}
    from_coco(labels, killed, shard_size=2, images=tmp_path)
    assert contents(killed) == contents(whole) and len(finished) == 4
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # they are kept


def test_another_import_into_the_same_store_raises(labels, tmp_path):
    from_coco(labels, tmp_path / "store", shard_size=2)
    assert len(from_coco(labels, tmp_path / "store", shard_size=2)) == 10  # the same one finds it
    with pytest.raises(LabelingError, match="was begun with labeler coco, not mine. Import into another folder"):
        from_coco(labels, tmp_path / "store", shard_size=2, labeler="mine")
