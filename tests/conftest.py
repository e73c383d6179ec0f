"""The smallest profile, data and runs in folders of their own, and one thread, for every test."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def small_world(tmp_path_factory):
    """Set for this process and the ones it starts."""
    root = tmp_path_factory.mktemp("cassl")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASSL_PROFILE", "smoke")
        patch.setenv("CASSL_DATASETS", str(root / "datasets"))
        patch.setenv("CASSL_RUNS", str(root / "runs"))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield root


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images, which are not part of the repository."""
    default = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    folder = Path(os.environ.get("CASSL_SHARED_DATA", default))
    if not (folder / "coco_subset" / "images").is_dir():
        pytest.skip(f"no real images in {folder}; set CASSL_SHARED_DATA")
    return folder
