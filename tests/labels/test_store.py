"""The pseudo-label store: rows round-trip, the threshold is applied at read time, damaged files are named."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.feather
import pytest
import torch
from pycocotools import mask as mask_api

from cassl_lib.config import THRESHOLD
from cassl_lib.errors import PseudoLabelError
from cassl_lib.labels import store
from cassl_lib.labels.coco import to_coco
from cassl_lib.labels.shards import finish, finished_shards, write_shard
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.labels.summary import formatted_counts, threshold_counts


def rle(left, top, right, bottom, height=20, width=30):
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[top:bottom, left:right] = 1
    return mask_api.encode(mask)


def row(image_id, scores, boxes, **extra):
    return {
        "image_id": image_id,
        "file_name": f"pool/{image_id}.jpg",
        "height": 20,
        "width": 30,
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "scores": np.array(scores, np.float32),
        "labels": np.zeros(len(scores), np.int64),
        **extra,
    }


BOXES = [[1, 2, 5, 6], [0, 0, 30, 20], [7.5, 3, 9, 10]]
MASKS = [rle(1, 2, 5, 6), rle(0, 0, 30, 20), rle(7, 3, 9, 10)]
ROWS = [
    [row(11, [0.9, 0.05, 0.4], BOXES, rles=MASKS), row(12, [], [], rles=[])],
    [row(2**40, [0.2], BOXES[:1], rles=MASKS[:1])],
]


@pytest.fixture
def folder(tmp_path):
    """Two shards: an image with three labels, one with none, one with a single low-scoring label."""
    for index, rows in enumerate(ROWS):
        write_shard(tmp_path / "store", index, rows, "labeler-1")
    finish(tmp_path / "store", labeler="labeler-1", pool="pool-1", shards=2)
    return tmp_path / "store"


def test_rows_round_trip(folder):
    labels = PseudoLabelStore(folder, threshold=0.0)
    assert len(labels) == 3 and labels.labeler == "labeler-1"
    item = labels[0]
    assert (item["image_id"], item["file_name"], item["height"], item["width"]) == (11, "pool/11.jpg", 20, 30)
    np.testing.assert_array_equal(item["boxes"], np.array(BOXES, np.float32))
    np.testing.assert_array_equal(item["scores"], np.array([0.9, 0.05, 0.4], np.float32))
    assert item["boxes"].dtype == item["scores"].dtype == item["areas"].dtype == np.float32
    assert item["areas"].tolist() == [16, 600, 14]  # of the masks; the third box's own area is 10.5
    assert item["rles"] == MASKS
    np.testing.assert_array_equal(mask_api.decode(item["rles"]), mask_api.decode(MASKS))
    assert labels[-1]["image_id"] == labels[2]["image_id"] == 2**40
    with pytest.raises(IndexError):
        labels[3]


def test_the_threshold_is_applied_at_read_time(folder):
    labels = PseudoLabelStore(folder, threshold=0.3)
    assert labels[0]["scores"].tolist() == pytest.approx([0.9, 0.4])
    assert labels[0]["rles"] == [MASKS[0], MASKS[2]]
    assert labels[0]["boxes"].tolist() == [BOXES[0], BOXES[2]]
    assert labels.at(0.5)[0]["areas"].tolist() == [16] and len(labels[0]["scores"]) == 2
    assert labels.at(0.4)[0]["scores"].tolist() == pytest.approx([0.9])  # above, not at, the threshold


def test_images_without_labels_have_empty_arrays(folder):
    for item in (PseudoLabelStore(folder)[1], PseudoLabelStore(folder, threshold=0.95)[0]):
        assert item["boxes"].shape == (0, 4) and item["scores"].shape == (0,) and item["rles"] == []
    assert PseudoLabelStore(folder, threshold=0.95).images_with_labels().tolist() == []
    assert PseudoLabelStore(folder, threshold=0.3).images_with_labels().tolist() == [0]
    assert PseudoLabelStore(folder, threshold=0.1).images_with_labels().tolist() == [0, 2]


def test_statistics_match_hand_counts(folder):
    statistics = PseudoLabelStore(folder).statistics([0.0, 0.1, 0.3, 0.95])
    assert statistics["labels"].tolist() == [4, 3, 2, 0]
    assert statistics["labels_per_image"].tolist() == pytest.approx([4 / 3, 1, 2 / 3, 0])
    assert statistics["images_with_labels"].tolist() == [2, 2, 1, 0]
    assert statistics["images_by_labels"][0][[0, 1, 2, 3]].tolist() == [1, 1, 0, 1]
    assert statistics["images_by_labels"].sum(axis=1).tolist() == [3, 3, 3, 3]
    assert statistics["areas"].tolist() == [[4, 0, 0], [3, 0, 0], [2, 0, 0], [0, 0, 0]]
    low, high = statistics["score_edges"][:-1], statistics["score_edges"][1:]
    expected = [
        sum(a <= np.float32(score) < b for score in (0.9, 0.05, 0.4, 0.2)) for a, b in zip(low, high, strict=True)
    ]
    assert statistics["score_histogram"].tolist() == expected


def test_areas_are_binned_by_the_limits_of_coco(tmp_path):
    areas = [32**2 - 1, 32**2, 96**2 - 1, 96**2]
    write_shard(tmp_path, 0, [row(1, [0.5] * 4, [BOXES[0]] * 4, areas=areas)], "m")
    finish(tmp_path, labeler="m", pool="p")
    assert PseudoLabelStore(tmp_path).statistics([0.3])["areas"].tolist() == [[1, 2, 1]]


def test_box_only_labels_and_tensors_are_accepted(tmp_path):
    tensors = {"boxes": torch.tensor(BOXES), "scores": torch.tensor([0.9, 0.8, 0.7]), "labels": torch.zeros(3).long()}
    write_shard(tmp_path, 0, [row(1, [], []) | tensors, row(2, [], [], rles=MASKS) | tensors], "m")
    finish(tmp_path, labeler="m", pool="p")
    labels = PseudoLabelStore(tmp_path)
    assert labels[0]["areas"].tolist() == [16, 600, 10.5] and labels[0]["rles"] == []
    assert labels[1]["rles"] == MASKS
    assert "segmentation" not in to_coco(labels)["annotations"][0]


def test_pyarrow_alone_can_read_a_store(folder):
    table = pyarrow.feather.read_table(folder / "shard-00000.arrow")
    assert pyarrow.dataset.dataset(sorted(map(str, folder.glob("*.arrow"))), format="ipc").count_rows() == 3
    assert table["scores"].to_pylist()[1] == [] and len(table["boxes"].to_pylist()[0]) == 12
    assert table["masks"].to_pylist()[0] == [mask["counts"] for mask in MASKS]
    assert set(table["labeler"].to_pylist()) == {"labeler-1"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["images"], manifest["labels"], manifest["pool"], manifest["version"]) == (3, 4, "pool-1", 2)
    assert [shard["rows"] for shard in manifest["shards"]] == [2, 1]


def test_a_pickle_is_small_and_leaves_out_the_open_shards(folder):
    labels = PseudoLabelStore(folder, threshold=0.3)
    before = len(pickle.dumps(labels))
    expected = labels[0]
    copied = pickle.loads(pickle.dumps(labels))
    assert len(pickle.dumps(labels)) == before < 2000
    np.testing.assert_array_equal(copied[0]["boxes"], expected["boxes"])


def test_each_shard_is_opened_once_and_not_copied(folder, monkeypatch):
    opened = []
    original = pa.memory_map
    monkeypatch.setattr(pa, "memory_map", lambda *args: opened.append(args) or original(*args))
    labels = PseudoLabelStore(folder)
    assert len(opened) == 0
    for index in (0, 1, 0, 1):
        labels[index], labels.at(0.7)[index]
    assert len(opened) == 1
    shard = labels._shards[0]
    in_file = pa.total_allocated_bytes()
    assert not any(view.flags.owndata for view in (shard.boxes, shard.scores, shard.starts, shard.mask_offsets))
    labels.at(0.0)[0]
    assert pa.total_allocated_bytes() == in_file


def test_the_number_of_open_shards_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "OPEN_SHARDS", 2)
    for number in range(5):
        write_shard(tmp_path, number, [row(number, [0.9], BOXES[:1])], "m")
    finish(tmp_path, labeler="m", pool="p")
    labels = PseudoLabelStore(tmp_path)
    assert [labels[index]["image_id"] for index in (0, 1, 2, 3, 4, 0)] == [0, 1, 2, 3, 4, 0]
    assert list(labels._shards) == [4, 0]


def test_an_interrupted_labeling_resumes(tmp_path):
    write_shard(tmp_path, 1, ROWS[1], "m")
    write_shard(tmp_path, 0, ROWS[0], "m")
    assert finished_shards(tmp_path, "m").keys() == {0, 1}
    (tmp_path / "shard-00000.json").unlink()  # killed between the shard and its entry
    (tmp_path / "shard-00002.arrow.tmp").write_bytes(b"half")  # killed while writing
    assert finished_shards(tmp_path, "m").keys() == {1}
    with pytest.raises(PseudoLabelError, match=r"shard-00000\.arrow is missing"):
        finish(tmp_path, labeler="m", pool="p", shards=2)
    with pytest.raises(PseudoLabelError, match=r"manifest\.json is missing \(1 shards"):
        PseudoLabelStore(tmp_path)
    write_shard(tmp_path, 0, ROWS[0], "m")
    finish(tmp_path, labeler="m", pool="p", shards=2)
    assert len(PseudoLabelStore(tmp_path)) == 3


def test_rewriting_a_shard_gives_the_same_bytes(folder, tmp_path):
    write_shard(tmp_path / "again", 0, ROWS[0], "labeler-1")
    assert (tmp_path / "again/shard-00000.arrow").read_bytes() == (folder / "shard-00000.arrow").read_bytes()


def test_each_image_gets_its_own_masks(tmp_path):
    rows = [row(n, [0.9, 0.8], BOXES[:2], rles=[rle(n, 1, 9, 9), rle(n, 2, 8, 8)]) for n in range(4)]
    write_shard(tmp_path, 0, rows, "m")
    finish(tmp_path, labeler="m", pool="p")
    labels = PseudoLabelStore(tmp_path, threshold=0.85)
    assert [item["rles"] for item in labels] == [[rle(n, 1, 9, 9)] for n in range(4)]


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
def test_a_failed_write_leaves_the_old_shard(folder, monkeypatch, step):
    before = (folder / "shard-00000.arrow").read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(step, fail)
    with pytest.raises(OSError, match="disk full"):
        write_shard(folder, 0, ROWS[1], "labeler-1")
    assert (folder / "shard-00000.arrow").read_bytes() == before


def damage_one_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        damage_one_bit,
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: write_shard(path.parent, 1, [row(5, [0.7], BOXES[1:2], rles=MASKS[1:2])], "labeler-1"),
        lambda path: write_shard(path.parent, 7, [], "labeler-1") and path.unlink(),
    ],
    ids=["one bit flipped", "truncated", "deleted", "empty", "replaced", "deleted, another added"],
)
def test_a_damaged_shard_is_named(folder, damage):
    damage(folder / "shard-00001.arrow")
    with pytest.raises(PseudoLabelError, match=r"shard-00001\.arrow"):
        PseudoLabelStore(folder).verify()


def test_foreign_shards_and_files_are_named(folder):
    with pytest.raises(PseudoLabelError, match=r"shard-00000\.arrow: made by labeler labeler-1, not by another"):
        finished_shards(folder, "another")
    with pytest.raises(PseudoLabelError, match=r"shard-00001\.arrow is one too many"):
        finish(folder, labeler="labeler-1", pool="pool-1", shards=1)
    write_shard(folder, 5, ROWS[1], "labeler-1")
    with pytest.raises(PseudoLabelError, match=r"shard-00005\.arrow is not in the manifest"):
        PseudoLabelStore(folder)
    (folder / "manifest.json").write_text('{"format": "another"}')
    with pytest.raises(PseudoLabelError, match=r"manifest\.json does not belong"):
        PseudoLabelStore(folder)


@pytest.mark.parametrize(
    "extra, message",
    [
        ({"scores": [0.5]}, "'boxes': 3, 'scores': 1.*Give one of each"),
        ({"rles": MASKS[:2]}, "2 masks"),
        ({"rles": [rle(0, 0, 5, 5, height=21)] * 3}, "a mask does not have the image's size 20 x 30"),
        ({"boxes": [[0, 0, np.nan, 1]] * 3}, "not finite"),
    ],
)
def test_inconsistent_rows_raise(tmp_path, extra, message):
    with pytest.raises(PseudoLabelError, match="pool/1.jpg: .*" + message):
        write_shard(tmp_path, 0, [row(1, [0.9, 0.8, 0.7], BOXES) | extra], "m")
    assert not list(tmp_path.glob("*.arrow"))


def test_a_store_may_be_empty(tmp_path):
    finish(tmp_path, labeler="m", pool="p", shards=0)
    labels = PseudoLabelStore(tmp_path)
    assert len(labels) == 0 and labels.images_with_labels().tolist() == []
    assert labels.statistics([0.5])["labels_per_image"].tolist() == [0]
    assert to_coco(labels)["images"] == []


def test_the_default_threshold_is_the_setting(folder):
    assert PseudoLabelStore(folder).threshold == THRESHOLD


def test_counts_per_threshold_are_python_numbers(folder):
    every, half = threshold_counts(PseudoLabelStore(folder), (0.0, 0.3))
    assert every == {"threshold": 0.0, "labels": 4, "labels_per_image": 4 / 3, "images_with_labels": 2}
    assert half == {"threshold": 0.3, "labels": 2, "labels_per_image": 2 / 3, "images_with_labels": 1}
    assert json.loads(json.dumps([every, half])) == [every, half]
    lines = [["score above", "labels", "per image", "images with labels"]]
    lines += [["all", "4", "1.33", "2"], ["0.30", "2", "0.67", "1"]]
    assert formatted_counts([every, half]) == lines


def test_the_repr_is_one_line(folder):
    expected = f"PseudoLabelStore('{folder}', threshold=0.3): 3 images, 2 shards, labeler labeler-1"
    assert repr(PseudoLabelStore(folder, threshold=0.3)) == expected


def test_the_html_repr_is_escaped_and_counts_labels(tmp_path):
    folder, labeler = tmp_path / "<b>store</b>", "<script>&"
    write_shard(folder, 0, ROWS[0], labeler, unreadable=["pool/13.jpg"])
    finish(folder, labeler=labeler, pool="pool-1")
    shown = PseudoLabelStore(folder)._repr_html_()
    assert "&lt;script&gt;&amp;" in shown and "&lt;b&gt;store&lt;/b&gt;" in shown
    assert "<script>" not in shown and "<b>" not in shown
    assert "<td>2, 1 more were unreadable</td>" in shown and "MB on disk" in shown
    assert "<tr><td>all</td><td>3</td><td>1.50</td><td>1</td></tr>" in shown
    assert "<tr><td>0.80</td><td>1</td><td>0.50</td><td>1</td></tr>" in shown


def test_an_empty_store_has_an_html_repr(tmp_path):
    finish(tmp_path, labeler="m", pool="p", shards=0)
    assert "<tr><td>all</td><td>0</td><td>0.00</td><td>0</td></tr>" in PseudoLabelStore(tmp_path)._repr_html_()
