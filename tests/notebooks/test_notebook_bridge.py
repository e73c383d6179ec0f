"""The bridge between notebooks and library: parameters are refused or used, and what is shown is what there is."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_models import AGNOSTIC

from cassl_lib import inspection, notebook
from cassl_lib.data import datasets
from cassl_lib.errors import ConfigError, DataError, MissingRun
from cassl_lib.labels.shards import finish, write_shard
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.models.build import build_detector
from cassl_lib.resolve import resolve, to_json
from cassl_lib.runs import Run
from cassl_lib.stages import all_stages as stages


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def cells(monkeypatch, *texts):
    """Pretend that IPython has executed these cells."""
    shell = types.SimpleNamespace(user_ns={"In": list(texts)})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))


def make_run(store, name, *, settings=None, data=None, **result):
    run = Run(store / name)
    run.folder.mkdir(parents=True)
    request = {"stage": name.split("-")[0], "settings": settings or {}, "inputs": {}, "data": data or {}}
    (run.folder / "request.json").write_text(json.dumps(request))
    run.finish({"metrics": {}, "images": 3, "seconds": 1.6, "unreadable": []} | result)
    return run


# ---- parameters ----


def test_configure_resolves_and_says_why(capsys):
    config = notebook.configure(profile="smoke", split="base", seed=3, stage="warmup", epochs=2, own={"devices": 2})
    assert to_json(config) == to_json(resolve(profile="smoke", split="base", seed=3, stage="warmup", epochs=2))
    shown = capsys.readouterr().out
    assert "profile smoke (asked for)" in shown and "split        'base'" in shown
    assert max(map(len, shown.splitlines())) <= 120
    notebook.configure(profile="smoke", show=False)
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    "own",
    [
        {"devices": 0},
        {"devices": 1.5},
        {"devices": "2"},
        {"devices": True},
        {"devices": None},
        {"devices": 1, "labels": 7},
        {"labels": "  "},
        {"devices": 2, "labels": "labels-1"},
    ],
)
def test_bad_parameters_of_a_notebook_are_refused(own):
    with pytest.raises(ConfigError, match=f"{list(own)[-1]}={list(own.values())[-1]!r}".replace("  ", ".*")):
        notebook.configure(profile="smoke", own=own)


def test_good_parameters_of_a_notebook_pass():
    notebook.configure(profile="smoke", own={"devices": 1, "labels": "labels-1"}, show=False)
    notebook.configure(profile="smoke", own={"devices": 8, "labels": None}, show=False)


def test_values_are_checked_by_resolve():
    with pytest.raises(ConfigError, match="masks='false' is not True or False"):
        notebook.configure(profile="smoke", masks="false")
    with pytest.raises(ConfigError, match="epochs='ten' is not a number"):
        notebook.configure(profile="smoke", stage="warmup", epochs="ten")


def test_an_injected_name_that_is_no_parameter_is_refused(monkeypatch):
    cells(
        monkeypatch, "import x", 'split = "tiny"', '# Parameters\nsplitt = "base"\nseed = 1\n', "notebook.configure()"
    )
    assert notebook.injected_names() == ["splitt", "seed"]
    with pytest.raises(ConfigError, match="unknown parameter splitt; this notebook has: profile, seed, devices"):
        notebook.configure(profile="smoke", seed=1, own={"devices": 1})


def test_the_stage_of_a_notebook_is_no_parameter(monkeypatch):
    cells(monkeypatch, '# Parameters\nstage = "finetune"\n')
    with pytest.raises(ConfigError, match="unknown parameter stage; this notebook has: profile"):
        notebook.configure(profile="smoke", stage="warmup", own={"devices": 1})


def test_known_injected_names_pass_and_the_latest_cell_counts(monkeypatch):
    cells(monkeypatch, "# Parameters\nseeed = 1\n", "# Parameters\nseed = 1\ndevices = 1\n")
    notebook.configure(profile="smoke", seed=1, own={"devices": 1}, show=False)


def test_without_papermill_nothing_is_injected(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert notebook.injected_names() == []
    cells(monkeypatch, "x = 1", "y = 2  # Parameters")
    assert notebook.injected_names() == []
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    assert notebook.injected_names() == []


def test_a_named_run_is_of_an_allowed_stage(store):
    run = make_run(store, "labeler-0123456789ab")
    assert notebook.named_run("labeler-01", "labels", "labeler") == run
    with pytest.raises(ConfigError, match="'labeler-01' is a run of the stage labeler; give one of: labels, warmup"):
        notebook.named_run("labeler-01", "labels", "warmup")
    with pytest.raises(MissingRun, match="is no run"):
        notebook.named_run("warmup-01", "warmup")


# ---- what a cell prints ----


def test_shapes(capsys):
    image = torch.zeros(3, 4, 5)
    notebook.show_shapes(image=image, five=[image[0]] * 5, target={"boxes": np.zeros((2, 4)), "size": (4, 5)}, n=7)
    assert capsys.readouterr().out.splitlines() == [
        "image        (3, 4, 5)",
        "five         [(4, 5); (4, 5); (4, 5); (4, 5); ...]",
        "target       boxes (2, 4), size (4, 5)",
        "n            7",
    ]


def test_source_is_the_functions_own(monkeypatch):
    shown = []
    display = types.SimpleNamespace(Code=lambda text, language: (text, language), display=shown.append)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    notebook.show_source(inspection.surest, inspection.strangest)
    assert [text.splitlines()[0][:11] for text, _ in shown] == ["def surest(", "def strange"]


def test_a_run_is_shown_with_its_unreadable_images(store, capsys):
    notebook.show_run(make_run(store, "warmup-a", steps=1200, images=34_000, seconds=12.4))
    notebook.show_run(make_run(store, "labels-b", unreadable=["a.jpg", "b.jpg"], unreadable_validation=["c.jpg"]))
    assert capsys.readouterr().out.splitlines() == [
        "warmup-a: 1,200 steps, 34,000 images, 12 s",
        "labels-b: 3 images, 2 s",
        "2 images could not be read, such as a.jpg",
        "1 validation images could not be read, such as c.jpg",
    ]


def test_metrics_that_do_not_exist_are_none(store):
    run = make_run(store, "warmup-a", metrics={"box_agnostic": {"AP": 0.25, "APl": -1.0}})
    assert notebook.metric(run, "box_agnostic") == 0.25
    assert notebook.metric(run, "box_agnostic", "APl") is notebook.metric(run, "mask") is None


def test_beside_paper(capsys):
    notebook.beside_paper([("ours alone", 0.1234, None), ("paper alone", None, 48.1)], metric="AP")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["AP", "here", "paper"],
        ["ours", "alone", "12.3"],
        ["paper", "alone", "48.1"],
    ]
    assert lines[1].index("12.3") + 4 == lines[0].index("here") + 4 and lines[2].endswith("48.1")


def test_nothing_left_out(capsys):
    notebook.show_left_out("")
    notebook.show_left_out("2 crowds")
    assert capsys.readouterr().out.splitlines() == ["nothing was left out", "2 crowds"]


# ---- images and detections ----


@pytest.mark.parametrize(
    ("total", "count", "expected"), [(10, 3, [0, 3, 6]), (2, 8, [0, 1]), (0, 8, []), (8, 8, [*range(8)])]
)
def test_images_are_spread_evenly(total, count, expected):
    assert inspection._spread(total, count) == expected


class Folder:
    """A source whose second image is damaged."""

    def __init__(self, folder):
        self.folder = folder
        for n in range(4):
            Image.new("RGB", (8, 6), (n, 0, 0)).save(folder / f"{n}.png")
        (folder / "1.png").write_bytes(b"no image")

    def __len__(self):
        return 4

    def image_path(self, index):
        return self.folder / f"{index}.png"

    def annotations(self, index, *, masks):
        return {"labels": [index], "masks": masks}


def test_a_sample_passes_over_what_cannot_be_read(tmp_path, capsys):
    images, found = inspection.sample(Folder(tmp_path), 8, masks=True)
    assert [int(image[0, 0, 0]) for image in images] == [0, 2, 3]
    assert [item["labels"] for item in found] == [[0], [2], [3]] and found[0]["masks"]
    assert [item["labels"] for item in inspection.sample(Folder(tmp_path), 2)[1]] == [[0], [2]]
    assert "passed over" in capsys.readouterr().err


def test_pictures_of_a_file_and_of_a_folder(tmp_path):
    Folder(tmp_path)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "1.png").unlink()
    assert [int(image[0, 0, 0]) for image in inspection.pictures(str(tmp_path))] == [0, 2, 3]
    assert [int(image[0, 0, 0]) for image in inspection.pictures(str(tmp_path), count=1)] == [0]
    assert [tuple(image.shape) for image in inspection.pictures(str(tmp_path / "2.png"))] == [(3, 6, 8)]


def test_places_without_pictures_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    for place, message in (("absent", "no such file or folder"), ("empty", "no image in it"), ("text.png", "text.png")):
        with pytest.raises(DataError, match=message):
            inspection.pictures(str(tmp_path / place))


def test_detections_are_in_the_frame_of_each_image_and_above_the_score(store):
    torch.manual_seed(0)
    model = build_detector(AGNOSTIC)
    torch.nn.init.constant_(model.head.class_logits.bias, 0.0)
    torch.nn.init.constant_(model.head.bbox_pred.bias, 1.0)
    settings = {"model": to_json(AGNOSTIC), "augment": {"test_size": 64, "longest": 128}}
    run = make_run(store, "labeler-a", settings=json.loads(json.dumps(settings)))
    save_file(model.state_dict(), run.weights)
    images = [torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8), torch.zeros(3, 130, 100, dtype=torch.uint8)]
    for image, found in zip(images, inspection.detections(run, images, above=0.3), strict=True):
        assert len(found["boxes"]) and found["masks"].shape[1:] == image.shape[1:]
        assert found["boxes"].max() <= max(image.shape[1:]) and (found["scores"] > 0.3).all()
        # the frame is the image's, not that of the 64 pixels it was tested at
        assert found["boxes"][:, 2].max() > 0.8 * image.shape[2] and found["boxes"][:, 3].max() > 0.8 * image.shape[1]
    assert all(len(found["boxes"]) == 0 for found in inspection.detections(run, images, above=0.99))


def test_a_batch_is_the_first_of_a_training():
    config = resolve(profile="smoke")
    train = datasets.labeled_set(config)
    images, targets = inspection.first_batch(train, config, classes=True)
    assert [tuple(image.shape) for image in images] == [(3, 96, 96)] * 4
    order = np.random.default_rng((0, 0)).permutation(len(train))[:4]
    for index, target in zip(order, targets, strict=True):
        assert set(target["labels"].tolist()) <= set(train.annotations(index, masks=False)["labels"].tolist())
        assert len(target["masks"]) == len(target["labels"])
    _, agnostic = inspection.first_batch(train, config, classes=False)
    assert not any(target["labels"].any() for target in agnostic)


def test_names_are_shared_or_none():
    assert inspection.shared_names(["cat", "dog"], ("cat", "dog")) == ["cat", "dog"]
    assert inspection.shared_names(["cat", "dog"], ["object"]) is None
    assert inspection.shared_names(["object"]) is None


# ---- errors ----

TRUTH = {
    "boxes": np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], np.float32),
    "labels": np.array([1, 2, 3]),
}
FOUND = {
    "boxes": np.array([[0, 0, 10, 9], [20, 0, 30, 8], [60, 0, 70, 10], [0, 0, 10, 10]], np.float32),
    "scores": np.array([0.9, 0.8, 0.7, 0.6], np.float32),
    "labels": np.array([1, 0, 3, 1]),
}


def names_of(marked):
    return [inspection.MARKS[label] for label in marked["labels"]]


def test_errors_are_marked():
    marked = inspection.mark_errors(FOUND, TRUTH)
    # the fourth would fit best, but the surer first has taken the object
    assert names_of(marked) == ["found", "wrong class", "spurious", "spurious", "missed"]
    np.testing.assert_array_equal(marked["boxes"][-1], TRUTH["boxes"][2])
    assert inspection.count_marks([marked, marked]) == {
        "found": 2,
        "wrong class": 2,
        "poorly placed": 0,
        "spurious": 4,
        "missed": 2,
    }


def test_without_classes_a_match_is_found():
    marked = inspection.mark_errors(FOUND, TRUTH, classes=False)
    assert names_of(marked) == ["found", "found", "spurious", "spurious", "missed"]


def test_errors_where_there_is_nothing():
    nothing = {"boxes": np.zeros((0, 4), np.float32), "scores": np.zeros(0), "labels": np.zeros(0, np.int64)}
    assert names_of(inspection.mark_errors(FOUND, nothing)) == ["spurious"] * 4
    assert names_of(inspection.mark_errors(nothing, TRUTH)) == ["missed"] * 3
    assert names_of(inspection.mark_errors(nothing, nothing)) == []
    assert inspection.count_marks([]) == dict.fromkeys(inspection.MARKS, 0)


def test_a_box_that_nearly_fits_is_poorly_placed_not_spurious():
    truth = {"boxes": np.array([[0, 0, 10, 10], [20, 0, 30, 10]], np.float32), "labels": np.array([1, 2])}
    boxes = [
        [0, 0, 10, 10],  # found
        [0, 0, 10, 4],  # IoU 0.4 with a truth that is found already
        [26, 0, 36, 10],  # 40 of 160 pixels shared: 0.25, of another class
        [20, 0, 21, 10],  # 0.1
        [20, 0, 29, 1],  # 0.09
        [0, 0, 10, 5],  # 0.5, but taken: a second box of the same object
        [50, 0, 60, 10],  # alone
    ]
    found = {"boxes": np.array(boxes, np.float32), "scores": np.arange(7, 0, -1) / 10, "labels": np.ones(7, np.int64)}
    expected = ["found", *["poorly placed"] * 3, *["spurious"] * 3, "missed"]
    assert names_of(inspection.mark_errors(found, truth)) == expected
    assert names_of(inspection.mark_errors(found, truth, classes=False)) == expected
    assert inspection.count_marks([inspection.mark_errors(found, truth)]) == {
        "found": 1,
        "wrong class": 0,
        "poorly placed": 3,
        "spurious": 3,
        "missed": 1,
    }


# ---- pseudo labels ----


def write_store(folder, boxes_and_scores):
    """A store of images of 20 by 40 pixels, each a list of (box, score); the red of image n is 10 n."""
    rows = []
    for n, labels in enumerate(boxes_and_scores):
        Image.new("RGB", (40, 20), (10 * n, 0, 0)).save(folder / f"{n}.png")
        facts = {"image_id": n, "file_name": str(folder / f"{n}.png"), "height": 20, "width": 40}
        rows.append(facts | {"boxes": [box for box, _ in labels], "scores": [score for _, score in labels]})
    write_shard(folder / "store", 0, rows, "labeler-a")
    finish(folder / "store", labeler="labeler-a", pool="p")
    return PseudoLabelStore(folder / "store", threshold=0.1)


SQUARE, THIN, LARGE = (0, 0, 10, 10), (0, 0, 39, 3), (0, 0, 40, 18)  # 13 to 1; 9 tenths of the image
LONG = (0, 0, 30, 5)  # 6 to 1


def test_the_surest_images_come_first(tmp_path):
    labels = write_store(
        tmp_path, [[(SQUARE, 0.3), (THIN, 0.5)], [(SQUARE, 0.9)], [], [(SQUARE, 0.6), (THIN, 0.8), (LARGE, 0.7)]]
    )
    images, shown = inspection.gallery(labels, inspection.surest)
    assert [int(image[0, 0, 0]) for image in images] == [30, 0]  # one label alone is not counted, nor none
    assert [found["scores"].tolist() for found in shown] == [pytest.approx([0.6, 0.8, 0.7]), pytest.approx([0.3, 0.5])]
    assert len(inspection.gallery(labels, inspection.surest, count=1)[0]) == 1


def test_borderline_labels_are_those_near_the_threshold(tmp_path):
    labels = write_store(
        tmp_path, [[(SQUARE, 0.41), (THIN, 0.9)], [(SQUARE, 0.38), (THIN, 0.42), (LARGE, 0.5)], [(SQUARE, 0.2)]]
    )
    images, shown = inspection.gallery(labels, inspection.borderline(0.4))
    assert [int(image[0, 0, 0]) for image in images] == [10, 0]
    assert [found["scores"].tolist() for found in shown] == [pytest.approx([0.38, 0.42]), pytest.approx([0.41])]


def test_the_strangest_labels_are_thin_or_large(tmp_path):
    labels = write_store(tmp_path, [[(SQUARE, 0.5)], [(LONG, 0.6), (LARGE, 0.4)], [(THIN, 0.3), (SQUARE, 0.9)], []])
    images, shown = inspection.gallery(labels, inspection.strangest)
    assert [int(image[0, 0, 0]) for image in images] == [20, 10, 0]
    assert [found["boxes"].tolist() for found in shown] == [[list(box)] for box in (THIN, LARGE, SQUARE)]


def test_a_gallery_of_masks_and_one_of_an_empty_store(tmp_path):
    from pycocotools import mask as coco_mask

    Image.new("RGB", (8, 6)).save(tmp_path / "0.png")
    mask = np.zeros((6, 8), np.uint8, order="F")
    mask[1:3, 2:7] = 1
    row = {"image_id": 0, "file_name": str(tmp_path / "0.png"), "height": 6, "width": 8}
    row |= {"boxes": [(2, 1, 7, 3)], "scores": [0.9], "rles": [coco_mask.encode(mask)]}
    write_shard(tmp_path / "store", 0, [row], "labeler-a")
    finish(tmp_path / "store", labeler="labeler-a", pool="p")
    labels = PseudoLabelStore(tmp_path / "store")
    (found,) = inspection.gallery(labels, inspection.strangest, masks=True)[1]
    np.testing.assert_array_equal(found["masks"][0], mask)
    assert "masks" not in inspection.gallery(labels, inspection.strangest)[1][0]
    assert inspection.gallery(labels.at(0.95), inspection.strangest) == ([], [])


def test_labels_are_judged_only_against_the_truth_of_their_own_pool(store, monkeypatch):
    config = resolve(profile="smoke")
    pool = datasets.pool(config)
    run = make_run(store, "labels-a", data={"pool": pool.fingerprint})
    truth = json.loads(datasets.hidden_ground_truth(config)[0].read_bytes())
    by_image = {image["id"]: [] for image in truth["images"]}
    for entry in truth["annotations"]:
        by_image[entry["image_id"]].append(entry["bbox"])
    rows = []
    for image in truth["images"]:
        boxes = np.array(by_image[image["id"]], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        row = {"image_id": image["id"], "file_name": "x", "height": image["height"], "width": image["width"]}
        rows.append(row | {"boxes": boxes, "scores": np.full(len(boxes), 0.5)})
    write_shard(run.folder / "store", 0, rows, "labeler-a")
    finish(run.folder / "store", labeler="labeler-a", pool=pool.fingerprint)
    labels = PseudoLabelStore(run.folder / "store")
    low, high = (stages.judge(config, labels.at(threshold)) for threshold in (0.4, 0.6))
    assert low["precision"] == low["recall"] == 1 and high["recall"] == 0
    assert stages.judge(resolve(profile="smoke", split="small"), labels).keys() == {"threshold", "labels"}
    monkeypatch.setattr(datasets, "hidden_ground_truth", lambda config: [])
    assert stages.judge(config, labels).keys() == {"threshold", "labels"}


def test_a_trained_run_remembers_its_classes():
    """06_inspect names detections by them, whatever data the parameters mean."""
    config = resolve(profile="smoke")
    assert stages.train_labeler(config).result["classes"] == ["object"]
    finetuned = stages.finetune(config, start="labeler").result["classes"]
    assert finetuned == datasets.labeled_set(config).classes and len(finetuned) == 12
