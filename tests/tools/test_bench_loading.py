"""The benchmark of loading, on two small noise images."""

import numpy as np
import torch
from PIL import Image

from cassl_lib.tools.bench_loading import bench_loading


def test_every_loader_is_measured(tmp_path):
    threads = torch.get_num_threads()
    random = np.random.default_rng(0)
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(random.integers(0, 256, (48, 64, 3), np.uint8)).save(tmp_path / name)
    measured = bench_loading(tmp_path, rounds=1, images=2)
    assert list(measured) == ["torchvision", "weak", "strong", "small_weak", "small_strong"]
    assert all(0 < value < 1000 for value in measured.values())
    assert torch.get_num_threads() == threads
