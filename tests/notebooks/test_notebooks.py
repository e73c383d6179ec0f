"""The notebooks as functions: papermill runs them from anywhere, with the parameters of a batch, and bad ones end them.

nbval runs all of them with their defaults; here are the parameters. The runs are shared with the other tests.
"""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
from PIL import Image

from cassl_lib import paths
from cassl_lib.labels.coco import from_coco
from cassl_lib.resolve import resolve
from cassl_lib.runs import Run, finished_runs
from cassl_lib.stages import all_stages as stages

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
POOLS = {"tiny": 16, "small": 34, "base": 60, "large": 136}  # smoke: 16 of coco, ten parts of 6 of each other source
WARM_UPS = {split: ["04_warmup", "-p", "split", split] for split in POOLS}
REFUSED = {
    "unknown": ["04_warmup", "-p", "splitt", "base"],
    "split": ["04_warmup", "-p", "split", "bse"],
    "epochs": ["04_warmup", "-p", "epochs", "ten"],
    "masks": ["04_warmup", "-p", "masks", "false"],
    "folder": ["01_data", "-p", "unlabeled", "/no/such/folder"],
}
MESSAGES = {
    "unknown": "ConfigError: unknown parameter splitt; this notebook has: profile, split, seed",
    "split": "ConfigError: split='bse' is not allowed; use one of: tiny, small, base, large",
    "epochs": "ConfigError: epochs='ten' is not a number",
    "masks": "ConfigError: masks='false' is not True or False",
    "folder": "DataError: /no/such/folder: no such folder or JSON, CSV, .txt list, .tar or .parquet index",
}


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """What papermill's command line did, by name: (process, its folder), two at a time, each in a folder of its own."""

    def call(arguments):
        folder = tmp_path_factory.mktemp("caller")
        name, *parameters = arguments
        command = [sys.executable, "-m", "papermill", str(NOTEBOOKS / f"{name}.ipynb"), "out.ipynb", *parameters]
        command += ["--kernel", "python3", "--no-progress-bar"]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True), folder

    stages.train_labeler(resolve())  # or all of them would wait for the one that makes it
    with ThreadPoolExecutor(2) as pool:
        return dict(zip([*WARM_UPS, *REFUSED], pool.map(call, [*WARM_UPS.values(), *REFUSED.values()]), strict=True))


def execute(name, folder, **parameters):
    """The executed notebook, run in `folder`."""
    source, target = str(NOTEBOOKS / f"{name}.ipynb"), str(folder / "out.ipynb")
    options = dict(kernel_name="python3", progress_bar=False, cwd=str(folder))
    papermill.execute_notebook(source, target, parameters=parameters, **options)
    return nbformat.read(target, 4)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def printed(notebook):
    return "".join(o.text for o in outputs(notebook) if o.output_type == "stream" and o.name == "stdout")


def pictures(notebook):
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def last_run(stage, text):
    """The run of a stage that was printed last."""
    return Run(paths.runs() / re.findall(rf"{stage}-[0-9a-f]{{12}}", text)[-1])


def inputs(run):
    return json.loads((run.folder / "request.json").read_text())["inputs"]


@pytest.mark.parametrize("split", POOLS)
def test_every_split_is_warmed_up_from_another_folder(split, commands):
    done, folder = commands[split]
    assert done.returncode == 0, done.stderr[-2000:]
    notebook = nbformat.read(folder / "out.ipynb", 4)
    text = printed(notebook)
    assert "profile smoke (from $CASSL_PROFILE)" in text and f"split        '{split}'" in text
    assert f"of {POOLS[split]} images" in text and last_run("warmup", text).result["images"] == POOLS[split]
    assert pictures(notebook) >= 4
    assert [path.name for path in folder.iterdir()] == ["out.ipynb"]  # nothing lands where it was called


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_used_ends_the_notebook(what, commands):
    done, _ = commands[what]
    assert done.returncode != 0 and MESSAGES[what] in done.stderr


def test_labels_of_ones_own_choice_are_used(tmp_path):
    labels = stages.label(resolve(split="small"))
    text = printed(execute("04_warmup", tmp_path, labels=labels.id, seed=5))
    warmup = last_run("warmup", text)
    assert inputs(warmup) == {"labels": labels.id} and warmup.result["images"] == POOLS["small"]
    assert "These images have no hidden truth." in text  # it is not the truth of this pool that is asked for


@pytest.fixture(scope="module")
def own_data(tmp_path_factory):
    """Boxes without masks on 6 images, in three classes whose ids have gaps, and a folder without labels."""
    root = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    for folder in ("labeled", "pool"):
        (root / folder).mkdir()
        for n in range(6):
            Image.fromarray(rng.integers(0, 256, (60 + n, 80, 3), np.uint8)).save(root / folder / f"{n}.png")
    (root / "pool" / "broken.jpg").write_bytes(b"no image")
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
    labeler = stages.train_labeler(resolve(**own_data))
    text = printed(execute("03_pseudo_labels", tmp_path, **own_data, labeler=str(labeler.folder)))
    labels = last_run("labels", text)
    assert inputs(labels) == {"labeler": labeler.id} and labels.result["images"] == 6
    assert "6 images in the pool" in text and "give heldout=JSON[:FOLDER]" in text


def test_labels_of_another_model_are_warmed_up_on(own_data, tmp_path):
    """A store that no run of ours made goes into notebook 04 by its folder."""
    path, _, images = own_data["labeled"].partition(os.pathsep)
    from_coco(path, tmp_path / "store", images=images, labeler="theirs")
    text = printed(execute("04_warmup", tmp_path, **own_data, labels=str(tmp_path / "store")))
    assert "labeled by theirs" in text and last_run("warmup", text).result["inputs"] == {}


def test_classes_of_ones_own_are_finetuned(own_data, tmp_path):
    warmup = stages.warm_up(resolve(**own_data))
    text = printed(execute("05_finetune", tmp_path, **own_data, warmup=warmup.id[:12]))
    assert "1 boxes have no area: annotation 9 [1, 1, 0, 5]" in text
    assert "6 images, 8 instances of 3 classes" in text and "now          (3, 32, 3, 3)" in text
    finetuned = last_run("finetune", text)
    assert inputs(finetuned) == {"warmup": warmup.id} and finetuned.result["classes"] == ["bolt", "nut", "gear"]
    assert "CA-SSL, from the warm-up, box AP" in text and "48.1" in text


def test_pictures_of_ones_own_are_inspected(own_data, tmp_path):
    run = stages.train_labeler(resolve()).id
    before = finished_runs()
    notebook = execute("06_inspect", tmp_path, images=own_data["unlabeled"] + "/3.png", run=run)
    assert "images       [(3, 63, 80)]" in printed(notebook) and run in printed(notebook)
    assert "These images have no truth to compare with." in printed(notebook)
    assert pictures(notebook) == 2 and finished_runs() == before
