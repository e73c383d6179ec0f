"""A small labeled set for every test of this folder."""

import pytest
from small_sets import DATA, write_coco

from cassl_lib.data.coco import CocoImages


@pytest.fixture
def coco(tmp_path):
    return CocoImages(write_coco(tmp_path, DATA), tmp_path / "images")
