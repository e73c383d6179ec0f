"""The notebooks as functions: they run from any folder with the parameters of a batch, and bad ones stop them.

nbval runs all of them in kernels with their defaults; here are the parameters. Two go through papermill and a kernel,
the others through papermill's command line and IPython in this process, which is faster. All share their runs.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from notebook_shell import command_line, execute, read
from PIL import Image

from cassl_lib import paths
from cassl_lib.labels.coco import from_coco
from cassl_lib.resolve import resolve
from cassl_lib.runs import finished_runs
from cassl_lib.stages import graph, requests

POOLS = {"tiny": 16, "small": 24, "base": 32, "large": 40}  # smoke: 16, and 8 more each
REJECTED = {
    "unknown": ("04_warmup", {"splitt": "base"}),
    "split": ("04_warmup", {"split": "bse"}),
    "epochs": ("04_warmup", {"epochs": "ten"}),
    "masks": ("04_warmup", {"masks": "false"}),
    "folder": ("01_data", {"unlabeled": "/no/such/folder"}),
}
MESSAGES = {
    "unknown": "ConfigError: unknown parameter splitt; this notebook has: profile, split, seed",
    "split": "ConfigError: split='bse' is not allowed; use one of: tiny, small, base, large",
    "epochs": "ConfigError: epochs='ten' is not a number",
    "masks": "ConfigError: masks='false' is not True or False",
    "folder": "DataError: /no/such/folder: no such folder or JSON, CSV, .txt list, .tar or .parquet index",
}
IN_A_KERNEL = {"base": ("04_warmup", {"split": "base"}), "unknown": REJECTED["unknown"]}


@pytest.fixture(scope="module")
def labeler():
    return graph.obtain(requests.pseudo_labeler(resolve()))


@pytest.fixture(scope="module", autouse=True)
def commands(labeler, tmp_path_factory):
    """papermill's command line, started before the other tests and awaited after them: process and folder by name."""
    started = {}
    for name, asked in IN_A_KERNEL.items():
        folder = tmp_path_factory.mktemp("caller")
        command = [sys.executable, "-m", "papermill", *command_line(*asked)]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        started[name] = process, folder
    yield started
    for process, _ in started.values():
        process.kill()


@pytest.mark.parametrize("split", [split for split in POOLS if split not in IN_A_KERNEL])
def test_every_split_is_warmed_up_from_another_folder(split, labeler, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_warmup(execute("04_warmup", tmp_path, split=split), split, tmp_path)


def check_warmup(shown, split, folder):
    assert shown.error is None
    assert "profile smoke (from $CASSL_PROFILE)" in shown.text and f"profile smoke, split {split}, seed 0" in shown.text
    assert f"of {POOLS[split]} images" in shown.text
    assert shown.last_run("warmup").result["images"] == POOLS[split]
    assert shown.pictures >= 4
    assert [path.name for path in folder.iterdir()] == ["out.ipynb"]  # nothing else is written where it was called


@pytest.mark.parametrize("name", [name for name in REJECTED if name not in IN_A_KERNEL])
def test_a_value_that_cannot_be_used_stops_the_notebook(name, tmp_path):
    notebook, parameters = REJECTED[name]
    error = execute(notebook, tmp_path, **parameters).error
    assert f"{type(error).__name__}: {error}".startswith(MESSAGES[name])


def test_pseudo_labels_of_ones_own_choice_are_used(tmp_path):
    labels = graph.obtain(requests.pseudo_labels(resolve(split="small")))
    shown = execute("04_warmup", tmp_path, store=labels.id, seed=5)
    warmup = shown.last_run("warmup")
    assert inputs(warmup) == {"pseudo_labels": labels.id} and warmup.result["images"] == POOLS["small"]
    # the ground truth of the configured pool, tiny, is not that of these images
    assert "These images have no hidden ground truth." in shown.text


def inputs(run):
    return json.loads((run.folder / "request.json").read_text())["inputs"]


@pytest.fixture(scope="module")
def own_data(tmp_path_factory):
    """Boxes without masks on 6 images, in three classes whose ids have gaps, and a folder without labels."""
    root = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    for folder in ("labeled", "pool"):
        (root / folder).mkdir()
        for n in range(6):
            Image.fromarray(rng.integers(0, 256, (60 + n, 80, 3), np.uint8)).save(root / folder / f"{n}.png")
    (root / "pool" / "broken.jpg").write_bytes(b"not an image")
    data = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 60 + n, "width": 80} for n in range(6)],
        "categories": [{"id": i, "name": name} for i, name in ((2, "bolt"), (30, "nut"), (31, "gear"))],
        "annotations": [
            {"id": n, "image_id": n % 4, "category_id": (2, 30, 31)[n % 3], "bbox": [5 * n, 10, 20, 20 + n]}
            for n in range(8)
        ],
    }
    data["annotations"].append({"id": 9, "image_id": 0, "category_id": 2, "bbox": [1, 1, 0, 5]})
    (root / "boxes.json").write_text(json.dumps(data))
    spec = f"{root / 'boxes.json'}:{root / 'labeled'}"
    return {"labeled": spec, "val": spec, "unlabeled": str(root / "pool"), "masks": False}


def test_images_of_ones_own_are_labeled(own_data, tmp_path):
    labeler = graph.obtain(requests.pseudo_labeler(resolve(**own_data)))
    shown = execute("03_pseudo_labels", tmp_path, **own_data, pseudo_labeler=str(labeler.folder))
    labels = shown.last_run("pseudo_labels")
    assert inputs(labels) == {"pseudo_labeler": labeler.id} and labels.result["images"] == 6
    assert "6 images in the pool" in shown.text and "heldout=JSON[:FOLDER]" in " ".join(shown.text.split())


def test_labels_of_another_model_are_warmed_up_on(own_data, tmp_path):
    """A store that no run of ours made goes into notebook 04 by its folder."""
    path, _, images = own_data["labeled"].partition(os.pathsep)
    from_coco(path, tmp_path / "store", images=images, labeler="theirs")
    shown = execute("04_warmup", tmp_path, **own_data, store=str(tmp_path / "store"))
    assert "<td>theirs</td>" in shown.text and shown.last_run("warmup").result["inputs"] == {}


def test_classes_of_ones_own_are_finetuned(own_data, tmp_path):
    warmup = graph.obtain(requests.warmup(resolve(**own_data)))
    shown = execute("05_finetune", tmp_path, **own_data, warmup=warmup.id[:12])
    left_out = [">boxes have no area<", ">1<", ">annotation 9 [1, 1, 0, 5]<"]
    assert all(cell in shown.text for cell in left_out)
    assert "6 images, 8 instances of 3 classes" in shown.text and "now          (3, 32, 3, 3)" in shown.text
    finetuned = shown.last_run("finetune")
    assert inputs(finetuned) == {"warmup": warmup.id} and finetuned.result["classes"] == ["bolt", "nut", "gear"]
    assert ">CA-SSL, box AP<" in shown.text and ">48.1<" in shown.text


def test_images_of_ones_own_are_inspected(own_data, labeler, tmp_path):
    before = finished_runs()
    shown = execute("06_inspect", tmp_path, images=own_data["unlabeled"] + "/3.png", run=labeler.id)
    assert "images       [(3, 63, 80)]" in shown.text and labeler.id in shown.text
    assert "These images have no ground truth." in shown.text
    assert shown.pictures == 2 and finished_runs() == before


def test_images_of_ones_own_are_detected_in_and_the_results_saved(own_data, labeler, tmp_path):
    before = finished_runs()
    shown = execute("00_quickstart", tmp_path, images=own_data["unlabeled"] + "/3.png", run=labeler.id[:20])
    assert "images       [(3, 63, 80)]" in shown.text and f"Predictor({labeler.id}, class-agnostic)" in shown.text
    assert "masks        (0, 63, 80)" in shown.text  # trained for six steps, it detects nothing yet
    assert shown.pictures == 1 and finished_runs() == before
    assert json.loads((paths.runs() / "detections.json").read_text()) == []


# ---- papermill and a kernel ----


def test_papermill_warms_up_from_another_folder(commands):
    process, folder = commands["base"]
    _, messages = process.communicate(timeout=600)
    assert process.returncode == 0, messages[-2000:]
    check_warmup(read(folder / "out.ipynb"), "base", folder)


def test_an_unknown_parameter_stops_papermill(commands):
    process, _ = commands["unknown"]
    _, messages = process.communicate(timeout=600)
    assert process.returncode != 0 and MESSAGES["unknown"] in messages
