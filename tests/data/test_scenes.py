"""The embedded scenes: reproducible, valid COCO, and safe against kills, races and damage."""

import json
import platform
import resource
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from cassl_lib.data.scenes import dataset as scenes
from cassl_lib.data.scenes import scene
from cassl_lib.data.scenes.dataset import SceneSpec, prepare, verify
from cassl_lib.data.scenes.kinds import NAMED, UNNAMED
from cassl_lib.errors import DiskFull, SceneError

# half of the things are unnamed even in the labeled units, so that a test sees whether they are left out
SPEC = SceneSpec(size=64, train=12, val=6, tune=3, pool=(10, 4, 4, 4), places=4, openimages=4, unnamed=(0.5,) * 4)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("scenes"), SPEC, ["train", "pool_0", "openimages"], progress=False)


def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != ".lock"}


def test_scenes_do_not_depend_on_order_or_on_other_units(files, tmp_path):
    again = prepare(tmp_path, SPEC, ["openimages", "val", "train"], progress=False)
    for unit in ("train", "openimages"):
        assert again.fingerprint(unit) == files.fingerprint(unit)
    rewritten, first = contents(again.root), contents(files.root)
    common = [name for name in first if "openimages" in name or "train" in name]
    assert len(common) == (12 + 1 + 1 + 12) + (4 + 1 + 1)
    assert all(rewritten[name] == first[name] for name in common)


def test_scenes_differ_by_seed_unit_and_index(tmp_path):
    images = [scene.draw_scene(SPEC, unit, index).image for unit in ("train", "val", "places") for index in (0, 1)]
    images.append(scene.draw_scene(SceneSpec(size=64, seed=1), "train", 0).image)
    assert len({image.tobytes() for image in images}) == 7


def test_pool_sizes_have_the_ratios_of_the_paper():
    spec = SceneSpec()
    sizes = {split: sum(scenes.unit_size(spec, unit) for unit in units) for split, units in scenes.SPLITS.items()}
    pools = {"tiny": 100, "small": 560, "base": 1500, "large": 3100}  # 1 : 5.6 : 15 : 31, as 123K to 3.66M
    assert sizes == pools | {"places": 1500, "openimages": 1500}  # a shifted pool is as large as base
    assert scenes.unit_size(spec, "train") == 500 and scenes.unit_size(spec, "val") == 1000


def test_each_pool_contains_the_smaller_ones():
    tiny, small, base, large = (set(scenes.SPLITS[split]) for split in ("tiny", "small", "base", "large"))
    assert tiny < small < base < large


@pytest.mark.parametrize(
    ("unit", "file"), [("train", "instances"), ("pool_0", "ground_truth"), ("openimages", "ground_truth")]
)
def test_instances_are_valid_coco(files, unit, file, capsys):
    coco = COCO(getattr(files, file)(unit))
    annotations = coco.loadAnns(coco.getAnnIds())
    assert len(annotations) >= 2 * 4
    assert len({a["id"] for a in coco.dataset["annotations"]}) == len(annotations)
    for annotation in annotations:
        mask, image = coco.annToMask(annotation), coco.imgs[annotation["image_id"]]
        assert mask.shape == (image["height"], image["width"])
        assert mask.sum() == annotation["area"] >= 12
        rows, columns = np.nonzero(mask)
        tight = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert annotation["bbox"] == tight == coco_mask.toBbox(annotation["segmentation"]).tolist()
        assert annotation["category_id"] in coco.cats and annotation["iscrowd"] == 0
    for image in coco.imgs.values():
        with Image.open(files.images(unit) / image["file_name"]) as jpeg:
            assert (jpeg.size, jpeg.mode) == ((image["width"], image["height"]), "RGB")
        masks = [coco.annToMask(a) for a in coco.imgToAnns[image["id"]]]
        assert not masks or np.sum(masks, 0).max() <= 1  # masks of visible pixels never overlap


def test_category_ids_have_gaps_and_image_ids_are_unique_over_units(files):
    ids = sorted(kind.id for kind in NAMED)
    assert len(ids) == len(set(ids)) == 12 and ids[-1] > 12
    images = [json.loads(files.instances("train").read_text())["images"]]
    images += [json.loads(files.image_info(unit).read_text())["images"] for unit in ("pool_0", "openimages")]
    assert len({image["id"] for unit in images for image in unit}) == 12 + 10 + 4


def test_panoptic_maps_agree_with_their_json_and_with_the_instances(files):
    path, folder = files.panoptic("train")
    data, instances = json.loads(path.read_text()), json.loads(files.instances("train").read_text())
    isthing = {category["id"]: category["isthing"] for category in data["categories"]}
    assert Counter(isthing.values()) == {1: 12, 0: 5}
    masks = {}
    for annotation in instances["annotations"]:
        of_image = masks.setdefault(annotation["image_id"], set())
        of_image.add((annotation["category_id"], coco_mask.decode(annotation["segmentation"]).tobytes()))
    void = 0
    for image, annotation in zip(data["images"], data["annotations"], strict=True):
        red, green, blue = np.moveaxis(np.asarray(Image.open(folder / annotation["file_name"]), np.int64), -1, 0)
        ids = red + 256 * green + 256**2 * blue
        segments = {segment["id"]: segment for segment in annotation["segments_info"]}
        assert set(np.unique(ids)) - {0} == set(segments)
        assert all((ids == number).sum() == segment["area"] for number, segment in segments.items())
        assert sum(s["area"] for s in segments.values()) + (ids == 0).sum() == image["height"] * image["width"]
        things = [s for s in segments.values() if isthing[s["category_id"]]]
        seen = {(s["category_id"], np.asfortranarray(ids == s["id"]).astype(np.uint8).tobytes()) for s in things}
        assert seen == masks.get(annotation["image_id"], set())
        for number, segment in segments.items():
            rows, columns = np.nonzero(ids == number)
            assert segment["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        void += (ids == 0).sum()
    assert void > 0  # pixels of unnamed things are neither a thing nor the stuff behind it


def test_unnamed_kinds_are_annotated_only_in_the_hidden_ground_truth(files):
    unnamed = {kind.id for kind in UNNAMED}
    instances = json.loads(files.instances("train").read_text())
    assert not unnamed & {category["id"] for category in instances["categories"]}
    assert not unnamed & {annotation["category_id"] for annotation in instances["annotations"]}
    assert any(not t.kind.named for i in range(12) for t in scene.draw_scene(SPEC, "train", i).things)
    assert "annotations" not in json.loads(files.image_info("pool_0").read_text())
    ground_truth = json.loads(files.ground_truth("pool_0").read_text())
    assert unnamed & {annotation["category_id"] for annotation in ground_truth["annotations"]}
    assert {c["id"] for c in ground_truth["categories"] if c["supercategory"] == "unnamed"} == unnamed


def test_unnamed_kinds_increase_from_labeled_to_openimages():
    def share(unit):
        named = [t.kind.named for i in range(40) for t in scene.draw_scene(SceneSpec(size=64), unit, i).things]
        return 1 - np.mean(named)

    train, pool, places, openimages = (share(unit) for unit in ("train", "pool_0", "places", "openimages"))
    # about 220 things each: standard deviation 0.01, 0.03, 0.04, 0.035
    assert train < 0.06 and 0.04 < pool < 0.18 and 0.3 < places < 0.6 and 0.42 < openimages < 0.68


def test_camouflage_changes_colors_and_not_positions(monkeypatch):
    def draw(camouflage):
        return scene.draw_scene(SceneSpec(camouflage=camouflage, clutter=0, noise=0), "train", 3)

    plain, hidden = draw(0.0), draw(1.0)
    monkeypatch.setattr(scene, "stamp", lambda *args, **options: None)
    empty = draw(0.0).image.astype(float)
    assert len(plain.things) == len(hidden.things) > 0
    inside = np.any([thing.mask for thing in plain.things], 0)
    assert np.array_equal(inside, np.any([thing.mask for thing in hidden.things], 0))
    contrast = [np.abs(scene.image - empty)[inside].mean() for scene in (plain, hidden)]
    assert contrast[1] < 0.6 * contrast[0]


def run(root, patch):
    """Start another process that runs `patch` and then prepares the train unit in `root`."""
    code = f"""
import os, signal
from cassl_lib.data.scenes import dataset as scenes
spec = scenes.SceneSpec(**{json.dumps(SPEC.__dict__)})
spec = scenes.SceneSpec(**{{k: tuple(v) if isinstance(v, list) else v for k, v in spec.__dict__.items()}})
calls = 0
def after(function, limit, act):
    def counted(*args):
        global calls
        calls += 1
        if calls > limit:
            act()
        return function(*args)
    return counted
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
{patch}
scenes.prepare({str(root)!r}, spec, ["train"], progress=False)
print(calls)
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


KILLS = {
    "while drawing": "scenes.draw_scene = after(scenes.draw_scene, 4, die)",
    "between two moves": "os.replace = after(os.replace, 2, die)",
    "before the manifest": "os.replace = after(os.replace, 4, die)",
}


@pytest.mark.parametrize("patch", KILLS.values(), ids=KILLS.keys())
def test_the_next_call_finishes_the_work_of_a_killed_one(files, tmp_path, patch):
    process = run(tmp_path, patch)
    assert process.wait(60) == -signal.SIGKILL
    process.stdout.close()
    assert any(tmp_path.iterdir()) and not (tmp_path / "manifest.json").exists()
    # As if a call for more scenes had been killed
    left = tmp_path / f".train.{platform.node()}.{2**22 - 3}.0123456789abcdef.tmp" / "images" / "train" / "left.jpg"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.touch()
    again = prepare(tmp_path, SPEC, ["train"], progress=False)
    assert again.fingerprint("train") == files.fingerprint("train")
    assert verify(tmp_path) == ["train"] and not (again.images("train") / "left.jpg").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"images", "annotations", "manifest.json", ".lock"}


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # an image is larger
        with pytest.raises(DiskFull, match=f"^{tmp_path / 'train'} cannot be written: .* Free disk space and rerun"):
            prepare(tmp_path, SPEC, ["train"], progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_of_two_concurrent_processes_one_draws_and_both_return(files, tmp_path):
    # the first waits at its first scene until the other is about to request the lock, so that they do meet
    count = "scenes.draw_scene = after(scenes.draw_scene, 99, die)"
    meet = f"""
import fcntl, pathlib
{count}
flock = fcntl.flock
def announce(*args):
    pathlib.Path({str(tmp_path)!r}, "asked-" + str(os.getpid())).touch()
    flock(*args)
fcntl.flock = announce
draw = scenes.draw_scene
def together(*args):
    while len(list(pathlib.Path({str(tmp_path)!r}).glob("asked-*"))) < 2:
        pass
    return draw(*args)
scenes.draw_scene = together
"""
    processes = [run(tmp_path, meet) for _ in range(2)]
    try:
        drawn = sorted(int(process.communicate(timeout=60)[0]) for process in processes)
    finally:
        for process in processes:
            process.kill()  # one would wait forever if the other failed
    assert drawn == [0, SPEC.train]
    assert scenes.SceneFiles(tmp_path).fingerprint("train") == files.fingerprint("train")


def test_damaged_units_are_detected_and_rewritten(tmp_path):
    files = prepare(tmp_path, SPEC, ["tune", "places"], progress=False)
    before, fingerprint = contents(tmp_path), files.fingerprint("tune")
    picture = sorted(files.images("tune").iterdir())[1]
    damaged = bytearray(picture.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    picture.write_bytes(damaged)
    with pytest.raises(SceneError, match=r"damaged: tune\. Rewrite"):
        verify(tmp_path)
    prepare(tmp_path, SPEC, ["tune", "places"], progress=False, verify=True)
    assert sorted(verify(tmp_path)) == ["places", "tune"]
    assert {name: data for name, data in contents(tmp_path).items() if name != "manifest.json"} == {
        name: data for name, data in before.items() if name != "manifest.json"
    }
    assert files.fingerprint("tune") == fingerprint


@pytest.mark.parametrize("lost", ["images", "ground_truth", "image_info"])
def test_a_missing_file_is_rewritten_without_verify(tmp_path, lost):
    files = prepare(tmp_path, SPEC, ["places"], progress=False)
    path = getattr(files, lost)("places")
    path = next(path.iterdir()) if path.is_dir() else path
    path.unlink()
    prepare(tmp_path, SPEC, ["places"], progress=False)
    assert path.exists() and verify(tmp_path) == ["places"]


def test_finished_units_are_neither_drawn_nor_locked(files, monkeypatch):
    monkeypatch.setattr(scenes, "draw_scene", None)
    monkeypatch.setattr(scenes, "alone", None)
    assert prepare(files.root, SPEC, ["pool_0", "train"]) == files


def test_another_spec_or_an_unknown_unit_raises(files):
    with pytest.raises(SceneError, match=r"differ in camouflage, seed\."):
        prepare(files.root, SceneSpec(**{**SPEC.__dict__, "seed": 5, "camouflage": 0.1}), ["train"])
    with pytest.raises(SceneError, match=r"unknown unit of scenes: test\."):
        prepare(files.root, SPEC, ["train", "test"])
