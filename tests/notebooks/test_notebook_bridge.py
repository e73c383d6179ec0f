"""The bridge between notebooks and library: parameters are validated, and cells show what there is."""

import json
import logging
import sys
import types

import numpy as np
import pytest
from PIL import Image

from cassl_lib import inspection, notebook
from cassl_lib.data import datasets
from cassl_lib.data.image_files import spread
from cassl_lib.errors import ConfigError, LeftOut, MissingRun
from cassl_lib.labels.shards import finish, write_shard
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.models.fcos import FCOS
from cassl_lib.resolve import resolve, to_json
from cassl_lib.runs import Run
from cassl_lib.stages import graph, requests
from cassl_lib.stages.pseudo_labels import judge
from cassl_lib.streams import stream


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def cells(monkeypatch, *texts):
    """Pretend that IPython has executed these cells."""
    shell = types.SimpleNamespace(user_ns={"In": list(texts)})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))


def make_run(store, name, **result):
    """A finished run that nothing has trained."""
    run = Run(store / name)
    run.folder.mkdir(parents=True)
    (run.folder / "request.json").write_text(json.dumps({"stage": run.stage, "inputs": {}}))
    run.finish({"metrics": {}, "images": 3, "seconds": 1.6, "unreadable": []} | result)
    return run


# ---- parameters ----


def test_configure_resolves_the_parameters_and_says_why(capsys):
    parameters = {"profile": "smoke", "split": "base", "seed": 3, "epochs": 2, "devices": 2}
    config = notebook.configure(parameters | {"other_variable": 1, "stage": "finetune"}, stage="warmup")
    assert to_json(config) == to_json(resolve(profile="smoke", split="base", seed=3, stage="warmup", epochs=2))
    (shown,) = capsys.readouterr().out.splitlines()
    assert "profile smoke (" in shown and len(shown) <= 120
    assert "<td style='text-align:left'>&#x27;base&#x27;</td>" in config._repr_html_()


@pytest.mark.parametrize(
    "own",
    [
        {"devices": 0},
        {"devices": 1.5},
        {"devices": "2"},
        {"devices": True},
        {"devices": None},
        {"devices": 1, "warmup": 7},
        {"pseudo_labeler": "  "},
        {"devices": 2, "warmup": "warmup-1"},
        {"jobs": 0},
        {"seeds": "3"},
        {"recorded": "yes"},
    ],
)
def test_bad_parameters_of_a_notebook_raise(own):
    with pytest.raises(ConfigError, match=f"{list(own)[-1]}={list(own.values())[-1]!r}".replace("  ", ".*")):
        notebook.configure({"profile": "smoke"} | own)


def test_good_parameters_of_a_notebook_pass():
    notebook.configure({"profile": "smoke", "devices": 1, "warmup": "warmup-1"})
    notebook.configure({"profile": "smoke", "devices": 8, "warmup": None, "seeds": None, "jobs": 2})


def test_functions_and_modules_are_not_parameters():
    """A notebook imports the stage `warmup`, and nbval keeps no history of its cells."""
    config = notebook.configure({"profile": "smoke", "warmup": judge, "pseudo_labeler": requests, "split": "small"})
    assert config.split == "small"


def test_values_are_checked_by_resolve():
    with pytest.raises(ConfigError, match="masks='false' is not True or False"):
        notebook.configure({"profile": "smoke", "masks": "false"})
    with pytest.raises(ConfigError, match="epochs='ten' is not a number"):
        notebook.configure({"profile": "smoke", "epochs": "ten"}, stage="warmup")


DECLARED = 'profile: str = "auto"\nseed: int = 0\ndevices: int = 1'


def test_an_injected_name_that_is_not_a_parameter_raises(monkeypatch):
    cells(monkeypatch, "import x", DECLARED, '# Parameters\nsplitt = "base"\nseed = 1\n', "notebook.configure()")
    assert notebook.injected_names() == ["splitt", "seed"]
    assert notebook.declared_names() == ["profile", "seed", "devices"]
    with pytest.raises(ConfigError, match="unknown parameter splitt; this notebook has: profile, seed, devices"):
        notebook.configure({"profile": "smoke", "splitt": "base", "seed": 1, "devices": 1})


def test_the_stage_of_a_notebook_is_not_a_parameter(monkeypatch):
    cells(monkeypatch, DECLARED, '# Parameters\nstage = "finetune"\n')
    with pytest.raises(ConfigError, match="unknown parameter stage; this notebook has: profile"):
        notebook.configure({"profile": "smoke", "seed": 0, "devices": 1, "stage": "finetune"}, stage="warmup")


def test_known_injected_names_pass_and_the_latest_cell_counts(monkeypatch):
    cells(monkeypatch, DECLARED, "# Parameters\nseeed = 1\n", "# Parameters\nseed = 1\ndevices = 1\n")
    assert notebook.configure({"profile": "smoke", "seed": 1, "devices": 1}).seed == 1


def test_a_variable_that_is_not_declared_is_not_a_parameter(monkeypatch):
    cells(monkeypatch, "%matplotlib inline", DECLARED)
    assert notebook.configure({"profile": "smoke", "seed": 1, "devices": 1, "split": "base"}).split == "tiny"


def test_without_papermill_nothing_is_injected(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert notebook.injected_names() == notebook.declared_names() == []
    cells(monkeypatch, "x = 1", "y = 2  # Parameters")
    assert notebook.injected_names() == []
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    assert notebook.injected_names() == []


def test_a_named_run_is_of_an_allowed_stage(store):
    run = make_run(store, "pseudo_labeler-0123456789ab")
    assert notebook.named_run("pseudo_labeler-01", "pseudo_labels", "pseudo_labeler") == run
    message = "'pseudo_labeler-01' is a pseudo_labeler run; give a run of pseudo_labels or warmup"
    with pytest.raises(ConfigError, match=message):
        notebook.named_run("pseudo_labeler-01", "pseudo_labels", "warmup")
    with pytest.raises(MissingRun, match="is not a run"):
        notebook.named_run("warmup-01", "warmup")


def test_an_input_run_is_the_named_one_or_made_only_where_the_profile_makes_inputs(store, monkeypatch):
    run = make_run(store, "warmup-0123456789ab")
    request = requests.warmup(resolve(profile="smoke"))
    assert notebook.input_run(request, "warmup-01") == run
    with pytest.raises(ConfigError, match="is a warmup run; give a run of pseudo_labeler or finetune"):
        notebook.input_run(request, "warmup-01", allowed=("pseudo_labeler", "finetune"))
    monkeypatch.setattr(graph, "obtain", lambda request, *, devices: ("obtained", devices))
    monkeypatch.setattr(graph, "require", lambda request: "required")
    assert notebook.input_run(request, devices=2) == ("obtained", 2)
    assert notebook.input_run(requests.warmup(resolve(profile="paper"))) == "required"


# ---- what a cell shows ----


def test_shapes(capsys):
    image = np.zeros((3, 4, 5))
    notebook.show_shapes(image=image, five=[image[0]] * 5, target={"boxes": np.zeros((2, 4)), "size": (4, 5)}, n=7)
    assert capsys.readouterr().out.splitlines() == [
        "image        (3, 4, 5)",
        "five         [(4, 5); (4, 5); (4, 5); (4, 5); ...]",
        "target       boxes (2, 4), size (4, 5)",
        "n            7",
    ]


def test_source_is_the_functions_own(monkeypatch):
    shown = []
    display = types.SimpleNamespace(Markdown=lambda text: text, display=shown.append)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    notebook.show_source(inspection.most_confident, FCOS.predict)
    files, sources = zip(*(text.split("```python\n") for text in shown), strict=True)
    assert "`cassl_lib/inspection.py`" in files[0] and "`cassl_lib/models/fcos.py`" in files[1]
    # a method is not indented, and its decorator is shown
    assert sources[0].startswith("def most_confident(") and sources[1].startswith("@torch.no_grad()\ndef predict(")


def test_runs_are_listed_with_their_unreadable_images(store):
    first = make_run(store, "warmup-a", steps=1200, images=34_000, seconds=12.4)
    second = make_run(store, "pseudo_labels-b", unreadable=["a.jpg", "b.jpg"], unreadable_validation=["c.jpg"])
    rows = notebook.list_runs({"first": first, "second": second})
    assert rows.body == [
        ["first", "warmup-a: 1,200 steps, 34,000 images, 12 s"],
        [
            "second",
            "pseudo_labels-b: 3 images, 2 s, 2 unreadable images, e.g. a.jpg, 1 unreadable val images, e.g. c.jpg",
        ],
    ]
    assert "warmup-a: 1,200 steps" in first._repr_html_()


def test_metrics_that_do_not_exist_are_none(store):
    run = make_run(store, "warmup-a", metrics={"box_agnostic": {"AP": 0.25, "APl": -1.0}})
    assert notebook.metric(run, "box_agnostic") == 0.25
    assert notebook.metric(run, "box_agnostic", "APl") is notebook.metric(run, "mask") is None


def test_beside_paper():
    rows = notebook.beside_paper([("ours alone", 0.1234, None), ("paper alone", None, 48.1)], metric="AP")
    assert (rows.head, rows.body) == (
        ["AP", "here", "paper"],
        [["ours alone", "12.3", ""], ["paper alone", "", "48.1"]],
    )
    lines = str(rows).splitlines()
    assert lines[1].index("12.3") + 4 == lines[0].index("here") + 4 and lines[2].endswith("48.1")
    assert '<td style="text-align:right;white-space:nowrap">48.1</td>' in rows._repr_html_()


def test_what_was_left_out_is_listed_by_reason():
    source = types.SimpleNamespace(left_out=LeftOut())
    assert str(notebook.left_out(source)) == "Nothing was left out."
    source.left_out.add("crowds", "annotation 7")
    source.left_out.add("crowds", "annotation 9")
    assert notebook.left_out(source).body == [["crowds", "2", "annotation 7, annotation 9"]]
    assert notebook.left_out(types.SimpleNamespace(left_out=None)).body == []


# ---- images and detections ----


@pytest.mark.parametrize(
    ("total", "count", "expected"), [(10, 3, [0, 3, 6]), (2, 8, [0, 1]), (0, 8, []), (8, 8, [*range(8)])]
)
def test_images_are_spread_evenly(total, count, expected):
    assert spread(total, count) == expected


class Folder:
    """A source whose second image is damaged."""

    def __init__(self, folder):
        self.folder = folder
        for n in range(4):
            Image.new("RGB", (8, 6), (n, 0, 0)).save(folder / f"{n}.png")
        (folder / "1.png").write_bytes(b"not an image")

    def __len__(self):
        return 4

    def image_path(self, index):
        return self.folder / f"{index}.png"

    def annotations(self, index, *, masks):
        return {"labels": [index], "masks": masks}


def test_a_sample_skips_what_cannot_be_read(tmp_path, caplog):
    images, instances = inspection.sample(Folder(tmp_path), 8, masks=True)
    assert [int(image[0, 0, 0]) for image in images] == [0, 2, 3]
    assert [item["labels"] for item in instances] == [[0], [2], [3]] and instances[0]["masks"]
    assert [item["labels"] for item in inspection.sample(Folder(tmp_path), 2)[1]] == [[0], [2]]
    ((_, level, message),) = caplog.record_tuples
    assert level == logging.WARNING and message.startswith(f"skipped {tmp_path / '1.png'}: ")


def test_a_batch_is_the_first_of_the_training():
    config = resolve(profile="smoke")
    train = datasets.labeled_set(config)
    images, targets = inspection.first_batch(train, config, stage="finetune", classes=True)
    assert [tuple(image.shape) for image in images] == [(3, 96, 96)] * 4
    order = np.random.default_rng((stream(0, "finetune", "order"), 0)).permutation(len(train))[:4]
    for index, target in zip(order, targets, strict=True):
        assert set(target["labels"].tolist()) <= set(train.annotations(index, masks=False)["labels"].tolist())
        assert len(target["masks"]) == len(target["labels"])
    _, agnostic = inspection.first_batch(train, config, stage="pseudo_labeler", classes=False)
    assert not any(target["labels"].any() for target in agnostic)


def test_names_are_shared_or_none():
    assert inspection.shared_names(["cat", "dog"], ("cat", "dog")) == ["cat", "dog"]
    assert inspection.shared_names(["cat", "dog"], ["object"]) is None
    assert inspection.shared_names(["object"]) is None


# ---- errors ----

GROUND_TRUTH = {
    "boxes": np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], np.float32),
    "labels": np.array([1, 2, 3]),
}
DETECTIONS = {
    "boxes": np.array([[0, 0, 10, 9], [20, 0, 30, 8], [60, 0, 70, 10], [0, 0, 10, 10]], np.float32),
    "scores": np.array([0.9, 0.8, 0.7, 0.6], np.float32),
    "labels": np.array([1, 0, 3, 1]),
}


def names_of(marked):
    return [inspection.MARKS[label] for label in marked["labels"]]


def test_errors_are_marked():
    marked = inspection.mark_errors(DETECTIONS, GROUND_TRUTH)
    # the fourth has the highest IoU, but the first, with a higher score, has taken the object
    assert names_of(marked) == ["correct", "wrong class", "false positive", "false positive", "missed"]
    np.testing.assert_array_equal(marked["boxes"][-1], GROUND_TRUTH["boxes"][2])
    assert inspection.count_marks([marked, marked]) == {
        "correct": 2,
        "wrong class": 2,
        "poorly localized": 0,
        "false positive": 4,
        "missed": 2,
    }


def test_without_classes_every_match_is_correct():
    marked = inspection.mark_errors(DETECTIONS, GROUND_TRUTH, classes=False)
    assert names_of(marked) == ["correct", "correct", "false positive", "false positive", "missed"]


def test_errors_where_there_is_nothing():
    nothing = {"boxes": np.zeros((0, 4), np.float32), "scores": np.zeros(0), "labels": np.zeros(0, np.int64)}
    assert names_of(inspection.mark_errors(DETECTIONS, nothing)) == ["false positive"] * 4
    assert names_of(inspection.mark_errors(nothing, GROUND_TRUTH)) == ["missed"] * 3
    assert names_of(inspection.mark_errors(nothing, nothing)) == []
    assert inspection.count_marks([]) == dict.fromkeys(inspection.MARKS, 0)


def test_a_box_that_nearly_fits_is_poorly_localized_and_no_false_positive():
    ground_truth = {"boxes": np.array([[0, 0, 10, 10], [20, 0, 30, 10]], np.float32), "labels": np.array([1, 2])}
    boxes = [
        [0, 0, 10, 10],  # correct
        [0, 0, 10, 4],  # IoU 0.4 with an object that is already detected
        [26, 0, 36, 10],  # 40 of 160 pixels shared: 0.25, of another class
        [20, 0, 21, 10],  # 0.1
        [20, 0, 29, 1],  # 0.09
        [0, 0, 10, 5],  # 0.5, but taken: a second box on the same object
        [50, 0, 60, 10],  # alone
    ]
    detections = {
        "boxes": np.array(boxes, np.float32),
        "scores": np.arange(7, 0, -1) / 10,
        "labels": np.ones(7, np.int64),
    }
    expected = ["correct", *["poorly localized"] * 3, *["false positive"] * 3, "missed"]
    assert names_of(inspection.mark_errors(detections, ground_truth)) == expected
    assert names_of(inspection.mark_errors(detections, ground_truth, classes=False)) == expected
    assert inspection.count_marks([inspection.mark_errors(detections, ground_truth)]) == {
        "correct": 1,
        "wrong class": 0,
        "poorly localized": 3,
        "false positive": 3,
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
    write_shard(folder / "store", 0, rows, "pseudo_labeler-a")
    finish(folder / "store", labeler="pseudo_labeler-a", pool="p")
    return PseudoLabelStore(folder / "store", threshold=0.1)


SQUARE, THIN, LARGE = (0, 0, 10, 10), (0, 0, 39, 3), (0, 0, 40, 18)  # 13 to 1; 9 tenths of the image
LONG = (0, 0, 30, 5)  # 6 to 1


def test_the_most_confident_images_come_first(tmp_path):
    labels = write_store(
        tmp_path, [[(SQUARE, 0.3), (THIN, 0.5)], [(SQUARE, 0.9)], [], [(SQUARE, 0.6), (THIN, 0.8), (LARGE, 0.7)]]
    )
    images, shown = inspection.gallery(labels, inspection.most_confident)
    assert [int(image[0, 0, 0]) for image in images] == [30, 0]  # an image with one label or none does not count
    assert [each["scores"].tolist() for each in shown] == [pytest.approx([0.6, 0.8, 0.7]), pytest.approx([0.3, 0.5])]
    assert len(inspection.gallery(labels, inspection.most_confident, count=1)[0]) == 1


def test_borderline_labels_are_those_near_the_threshold(tmp_path):
    labels = write_store(
        tmp_path, [[(SQUARE, 0.41), (THIN, 0.9)], [(SQUARE, 0.38), (THIN, 0.42), (LARGE, 0.5)], [(SQUARE, 0.2)]]
    )
    images, shown = inspection.gallery(labels, inspection.borderline(0.4))
    assert [int(image[0, 0, 0]) for image in images] == [10, 0]
    assert [each["scores"].tolist() for each in shown] == [pytest.approx([0.38, 0.42]), pytest.approx([0.41])]


def test_the_most_extreme_labels_are_thin_or_large(tmp_path):
    labels = write_store(tmp_path, [[(SQUARE, 0.5)], [(LONG, 0.6), (LARGE, 0.4)], [(THIN, 0.3), (SQUARE, 0.9)], []])
    images, shown = inspection.gallery(labels, inspection.most_extreme)
    assert [int(image[0, 0, 0]) for image in images] == [20, 10, 0]
    assert [each["boxes"].tolist() for each in shown] == [[list(box)] for box in (THIN, LARGE, SQUARE)]


def test_a_gallery_of_masks_and_one_of_an_empty_store(tmp_path):
    from pycocotools import mask as coco_mask

    Image.new("RGB", (8, 6)).save(tmp_path / "0.png")
    mask = np.zeros((6, 8), np.uint8, order="F")
    mask[1:3, 2:7] = 1
    row = {"image_id": 0, "file_name": str(tmp_path / "0.png"), "height": 6, "width": 8}
    row |= {"boxes": [(2, 1, 7, 3)], "scores": [0.9], "rles": [coco_mask.encode(mask)]}
    write_shard(tmp_path / "store", 0, [row], "pseudo_labeler-a")
    finish(tmp_path / "store", labeler="pseudo_labeler-a", pool="p")
    labels = PseudoLabelStore(tmp_path / "store")
    (shown,) = inspection.gallery(labels, inspection.most_extreme, masks=True)[1]
    np.testing.assert_array_equal(shown["masks"][0], mask)
    assert "masks" not in inspection.gallery(labels, inspection.most_extreme)[1][0]
    assert inspection.gallery(labels.at(0.95), inspection.most_extreme) == ([], [])


def test_labels_are_judged_only_against_the_ground_truth_of_their_own_pool(store, monkeypatch):
    config = resolve(profile="smoke")
    pool = datasets.pool(config)
    run = make_run(store, "pseudo_labels-a")
    ground_truth = json.loads(datasets.hidden_ground_truth(config)[0].read_bytes())
    by_image = {image["id"]: [] for image in ground_truth["images"]}
    for entry in ground_truth["annotations"]:
        by_image[entry["image_id"]].append(entry["bbox"])
    rows = []
    for image in ground_truth["images"]:
        boxes = np.array(by_image[image["id"]], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        row = {"image_id": image["id"], "file_name": "x", "height": image["height"], "width": image["width"]}
        rows.append(row | {"boxes": boxes, "scores": np.full(len(boxes), 0.5)})
    write_shard(run.folder / "store", 0, rows, "pseudo_labeler-a")
    finish(run.folder / "store", labeler="pseudo_labeler-a", pool=pool.fingerprint)
    labels = PseudoLabelStore(run.folder / "store")
    low, high = (judge(config, labels.at(threshold)) for threshold in (0.4, 0.6))
    assert low["precision"] == low["recall"] == 1 and high["recall"] == 0
    assert judge(resolve(profile="smoke", split="small"), labels).keys() == {"threshold", "labels"}
    monkeypatch.setattr(datasets, "hidden_ground_truth", lambda config: [])
    assert judge(config, labels).keys() == {"threshold", "labels"}


def test_a_trained_run_remembers_its_classes():
    """06_inspect names detections by them, whatever data the parameters mean."""
    config = resolve(profile="smoke")
    labeler = graph.obtain(requests.pseudo_labeler(config))
    assert labeler.result["classes"] == ["object"]
    finetuned = graph.obtain(requests.finetune(config, labeler)).result["classes"]
    assert finetuned == datasets.labeled_set(config).classes and len(finetuned) == 12
