"""The plan: its arithmetic by hand, its measurements with made-up clocks and sizes, and on a short chain."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cassl_lib.cli.main import main
from cassl_lib.config import AugmentConfig
from cassl_lib.data.loader import Samples
from cassl_lib.errors import ConfigError, DataError
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.profiles import PROFILES
from cassl_lib.resolve import resolve
from cassl_lib.stages import graph, requests
from cassl_lib.stages.pseudo_labels import judge, threshold_of
from cassl_lib.tools.plan import canvas, cost, estimate, throughput
from cassl_lib.tools.plan.cost import Plan, Row
from cassl_lib.tools.plan.synthetic_photos import SyntheticPhotos
from cassl_lib.tools.plan.throughput import LabelCounts, Rate

# Per image 2 seconds in training, half a second in labeling, a quarter in evaluation.
TRAINING = ("pseudo_labeler", "warmup", "finetune")
RATES = dict.fromkeys(TRAINING, Rate(0.5, 4, start=3, weights=100, checkpoint=300))
RATES |= {"pseudo_labels": Rate(0.1, 5, start=1), "evaluation": Rate(0.1, 2.5)}
IMAGES = {"labeled": 10, "pool": 25, "warmup": 24, "val": 8}


@pytest.fixture
def small():
    config = resolve(profile="smoke")
    sections = {
        "pseudo_labeler": replace(config.pseudo_labeler, steps=0, epochs=2, batch_size=4),  # ceil(2 * 10 / 4) = 5 steps
        "warmup": replace(config.warmup, steps=0, epochs=3, batch_size=4),  # 3 * 24 / 4 = 18
        "finetune": replace(config.finetune, steps=7, batch_size=8),
    }
    return replace(config, **sections, pseudo_labels=replace(config.pseudo_labels, shard_size=10))


def rows_of(config, devices=1) -> dict[str, Row]:
    labels = LabelCounts(stored=4, used=2, bytes=100)
    rows = cost.rows_of(config, IMAGES, RATES, labels, devices=devices)
    names = ["pseudo_labeler", "pseudo_labels", "warmup", "finetune", "baseline_1x", "baseline_2x"]
    assert [row.stage for row in rows] == names
    return {row.stage: row for row in rows}


def test_time_is_start_and_images_and_evaluation(small):
    rows = rows_of(small)
    trained = {name: row for name, row in rows.items() if name != "pseudo_labels"}
    assert {name: (row.steps, row.images) for name, row in trained.items()} == {
        "pseudo_labeler": (5, 20),
        "warmup": (18, 72),
        "finetune": (7, 56),
        "baseline_1x": (7, 56),
        "baseline_2x": (14, 112),
    }
    assert {row.evaluation for row in trained.values()} == {2.0}  # 8 images of 0.25 s
    # 3 + 2 * images + 2; labeling 1 + 25 * 0.5
    assert {name: row.seconds for name, row in rows.items()} == {
        "pseudo_labeler": 45,
        "pseudo_labels": 13.5,
        "warmup": 149,
        "finetune": 117,
        "baseline_1x": 117,
        "baseline_2x": 229,
    }
    assert rows["baseline_2x"].hours == 229 / 3600


def test_every_baseline_is_a_run_of_its_own_with_a_start_and_an_evaluation(small):
    """Lengths in epochs are rounded up to whole batches, as those of the run are: 1.5 * 2 * 10 / 8 = 3.75."""
    config = replace(small, baseline_lengths=(1.5,), finetune=replace(small.finetune, steps=0, epochs=2))
    labels = LabelCounts(stored=4, used=2, bytes=100)
    *_, row = cost.rows_of(config, IMAGES, RATES, labels, devices=1)
    assert (row.stage, row.title, row.steps) == ("baseline_1.5x", "baseline 1.5x", 4)
    assert row.seconds == 3 + 4 * 8 * 2 + 2


def test_the_baselines_rows_are_the_runs_of_the_chain():
    for profile in ("smoke", "demo", "paper"):
        config = resolve(profile=profile)
        chain = requests.chain(config)
        for name in cost.row_names(config):
            request = chain["cassl" if name == "finetune" else name]
            assert request.is_baseline == name.startswith("baseline") and request.stage in (name, "finetune")


def test_evaluation_during_training_is_part_of_the_time(small):
    """It is due after 5, 10, 15 and all 18 steps, four times 4 held-out images of 0.25 s; then come 8 images."""
    config = replace(small, warmup=replace(small.warmup, evaluate_every=5))
    labels = LabelCounts(stored=4, used=2, bytes=100)
    rows = {row.stage: row for row in cost.rows_of(config, IMAGES | {"heldout": 4}, RATES, labels, devices=1)}
    assert rows["warmup"].evaluation == 4 * 4 * 0.25 + 2 and rows["finetune"].evaluation == 2
    assert rows["warmup"].seconds == 149 + 4


def test_devices_share_images_but_not_shards(small):
    seconds = {name: row.seconds for name, row in rows_of(small, devices=2).items()}
    assert (seconds["pseudo_labeler"], seconds["warmup"]) == (3 + 40 / 2 + 2 / 2, 3 + 144 / 2 + 2 / 2)
    # Three shards of 10: one device has two of them, 1 + 20 * 0.5.
    assert seconds["pseudo_labels"] == 11
    assert rows_of(small, devices=4)["pseudo_labels"].seconds == 1 + 10 * 0.5  # a fourth device has nothing to do


def test_disk_and_labels(small):
    rows = rows_of(small)
    assert [row.kept for name, row in rows.items() if name != "pseudo_labels"] == [100] * 5
    assert rows["pseudo_labels"].kept == 25 * (100 + 60)  # store and index
    assert (rows["pseudo_labels"].labels, rows["pseudo_labels"].labels_used) == (100, 50)
    plan = Plan("", tuple(rows.values()), (), "/runs", free=5400)
    assert plan.needed == 5 * 100 + 4000 + 3 * 300  # a checkpoint, the one before it and its successor
    text = cost.table(plan)
    assert "disk: 5.4 kB needed at most, 5.4 kB free in /runs" in text and "NOT ENOUGH" not in text
    lines = cost.table(replace(plan, free=3000)).splitlines()
    short = [line for line in lines if line.startswith("NOT ENOUGH DISK")]
    assert short == ["NOT ENOUGH DISK: free 2.4 kB more in /runs, or set CASSL_RUNS to another disk"]


def test_the_table_sums_the_chain_without_the_baselines(small):
    lines = cost.table(Plan("title", tuple(rows_of(small).values()), ("a: b",), "/runs", 10**9)).splitlines()
    assert lines[0] == "title" and lines[-1] == "- a: b"
    cells = {line[:16].strip(): line[16:].split() for line in lines if line}
    assert cells["CA-SSL"] == ["5.4", "min", "4.3", "kB"]  # 45 + 13.5 + 149 + 117 = 324.5 s; 4,000 + 300 bytes
    assert cells["pseudo labeler"] == ["20", "5", "45", "s", "2.0", "s", "0.1", "kB"]
    assert cells["baseline 2x"] == ["112", "14", "3.8", "min", "2.0", "s", "0.1", "kB"]
    assert "labels: 100 in the store, 50 above the threshold" in lines
    assert not any("does not state" in line for line in lines)


def test_both_lengths_of_a_warmup_above_tiny_are_printed_with_their_hours():
    """Base is Open Images: 60 * 1,743,042 / 16 = 6,536,407.5 steps, against 60 * 123,403 / 16 = 462,761.25."""
    config, images = resolve(profile="paper", split="base"), IMAGES | {"warmup": 1_743_042}
    epochs, fixed = cost.schedules_of(config, images, RATES, devices=8)
    assert (epochs.steps, fixed.steps) == (6_536_408, 462_762)
    # 3 s, 16 images of 2 s per step on eight devices, 8 images of 0.25 s
    assert epochs.seconds == 3 + 6_536_408 * 16 * 2 / 8 + 8 * 0.25 / 8
    assert fixed.seconds == 3 + 462_762 * 16 * 2 / 8 + 8 * 0.25 / 8
    plan = Plan("", tuple(rows_of(config).values()), (), "/runs", free=10, schedules=(epochs, fixed))
    assert cost.table(plan).splitlines()[-6:-1] == [
        "",
        "The paper does not state how long it warms up on more images than tiny's:",
        "- 60 epochs of this pool: 6,536,408 steps, 7,262.7 h (--stage warmup --epochs 60)",
        "- as many steps as 60 epochs of tiny: 462,762 steps, 514.2 h (--stage warmup --steps 462762)",
        "",
    ]
    assert "514.2 h" in plan._repr_html_()
    chosen = resolve(profile="paper", split="base", stage="warmup", steps=fixed.steps)
    assert cost.schedules_of(chosen, images, RATES, devices=8) == (epochs, fixed)  # whichever is chosen
    assert rows_of(chosen)["warmup"].steps == 462_762


def test_up_to_tiny_there_is_one_length():
    config = resolve(profile="paper")
    assert cost.schedules_of(config, IMAGES | {"warmup": 123_403}, RATES, devices=1) == ()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3.26, "3.3 s"),
        (119, "119 s"),
        (120, "2.0 min"),
        (600, "10 min"),
        (7199, "120 min"),
        (9000, "2.5 h"),
        (4442400, "1,234 h"),
    ],
)
def test_durations_have_two_digits_or_more(seconds, text):
    assert cost.duration(seconds) == text


def test_the_rate_is_the_median_after_the_first_batches(monkeypatch):
    monkeypatch.setattr(throughput, "UNCOUNTED", 2)
    # 10 pixels each, except one of 20 that takes twice as long; the first two are slow, one is disturbed.
    times, pixels = [0, 0.8, 1.2, 1.4, 1.8, 2.0, 2.9], [10, 10, 10, 20, 10, 10, 0]
    per_pixel, start = throughput.rate_of(list(zip(times, pixels, strict=True)), began=-5)
    assert per_pixel == pytest.approx(0.02)  # 0.2 / 10, 0.4 / 20, 0.2 / 10, 0.9 / 10
    assert start == pytest.approx(5 + 1.2 - 20 * 0.02)  # until batch 2, less what the two before it cost at this rate


def test_batches_without_readable_images_are_not_counted(monkeypatch):
    monkeypatch.setattr(throughput, "UNCOUNTED", 0)
    assert throughput.rate_of([(0, 10), (1, 0), (9, 10), (10, 10), (11, 10), (12, 0)], began=0)[0] == 0.1


@pytest.mark.parametrize(("each", "expected"), [(0.0, 50), (10.0, 4), (2.0, 8)])
def test_measuring_ends_after_enough_batches_or_when_patience_is_over(monkeypatch, each, expected):
    """10 and 40 batches; of 10 s one and three; of 2 s those that start within 15 s."""
    clock = iter(np.arange(100) * each)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
    ticks, image = [], torch.zeros(3, 40, 70)
    passed = list(throughput.watched(iter([([image, image], None, [0, 1], [])] * 50), ticks))
    assert len(passed) == expected and len(ticks) == expected + 1
    assert ticks[0][1] == 2 * 64 * 96


def test_a_short_loader_is_measured_to_its_end():
    ticks = []
    assert len(list(throughput.watched(iter([([torch.zeros(3, 8, 8)], None, [0], [])] * 3), ticks))) == 3
    assert [pixels for _, pixels in ticks] == [32 * 32] * 3 + [0]
    assert throughput.rate_of(ticks, began=0)[0] > 0


def test_the_canvas_holds_all_images_of_a_batch():
    assert canvas.canvas([(33, 64), (20, 100)]) == 64 * 128 and canvas.canvas([]) == 0
    augment = AugmentConfig(sizes=(100,), test_size=100, longest=1000)
    mixed = np.array([(100, 200), (200, 100)])
    alone, together = 128 * 224, 224 * 224
    assert canvas.evaluation_canvas(augment, mixed, 1) == canvas.training_canvas(augment, mixed, 1) == alone
    # Half of all pairs have one orientation.
    assert canvas.evaluation_canvas(augment, mixed, 2) == pytest.approx((alone + together) / 2, rel=0.05)
    assert canvas.labeling_canvas(augment, mixed, 2) == alone  # similar aspect ratios share a batch
    assert canvas.training_canvas(replace(augment, crop=90), mixed, 2) == 96 * 96


def test_strong_augmentation_draws_any_side_of_its_range():
    """Squares of 32 to 64 pixels, alone: a side of 32 has a canvas of 32 * 32, the 32 others of 64 * 64."""
    augment = AugmentConfig(kind="strong", sizes=(1000,), strong_sizes=(32, 64), longest=1000)
    expected = (32 * 32 + 32 * 64 * 64) / 33  # 4,003
    assert canvas.training_canvas(augment, np.array([(48, 48)]), 1) == pytest.approx(expected, rel=0.03)
    assert canvas.training_canvas(replace(augment, kind="weak"), np.array([(48, 48)]), 1) == 1024 * 1024


def test_large_images_are_shrunk_on_a_cpu_and_their_time_is_scaled_back(monkeypatch, small):
    measured = {}

    def train(config, model, train, source, *, classes, pseudo_labeled, batch):
        measured.update(sizes=config.augment.sizes, longest=config.augment.longest, batch=batch)
        return 1e-6, 1.0, {"weights": 1, "checkpoint": 2}

    monkeypatch.setattr(throughput, "_train_briefly", train)
    monkeypatch.setattr(throughput, "device_of_process", lambda: torch.device("cpu"))
    config = replace(small, augment=AugmentConfig(sizes=(1024,), longest=2048))
    sizes = np.array([(480, 480)])
    rate, note = throughput.training_rate(
        config, config.model, small.finetune, None, sizes, classes=True, pseudo_labeled=False, devices=1
    )
    assert measured == {"sizes": (512,), "longest": 1024, "batch": 1}  # 512 * 512 = 2**18
    assert rate.seconds == pytest.approx(1e-6 * 1024**2)
    assert "shrunk to 50% of their training size" in note and "DO NOT FIT" not in note


def test_a_batch_that_does_not_fit_into_memory_is_halved(monkeypatch, small):
    tried = []

    def train(config, model, train, source, *, classes, pseudo_labeled, batch):
        tried.append(batch)
        if batch > 2:
            raise torch.OutOfMemoryError("full")
        return 0.5, 1.0, {"weights": 1, "checkpoint": 2}

    monkeypatch.setattr(throughput, "_train_briefly", train)
    monkeypatch.setattr(throughput, "device_of_process", lambda: torch.device("cuda"))
    sizes = np.array([(96, 96)])

    def rate_with(accumulate):
        tried.clear()
        section = replace(small.finetune, accumulate=accumulate)
        return throughput.training_rate(
            small, small.model, section, None, sizes, classes=True, pseudo_labeled=False, devices=1
        )

    rate, note = rate_with(1)
    assert tried == [8, 4, 2] and rate.seconds == 0.5 * 96 * 96
    assert "2 images at a time" in note and "8 IMAGES DO NOT FIT INTO ITS MEMORY: use accumulate=4" in note
    _, note = rate_with(2)
    assert tried == [4, 2] and "4 IMAGES DO NOT FIT INTO ITS MEMORY: use accumulate=4" in note
    _, note = rate_with(4)
    assert tried == [2] and "DO NOT FIT" not in note


@pytest.fixture
def nothing_on_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("CASSL_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    return tmp_path


def test_without_data_the_papers_chain_has_the_papers_numbers_of_images(monkeypatch, nothing_on_disk):
    measured = {}

    def training_rate(config, model, train, source, sizes, *, classes, pseudo_labeled, devices):
        measured[model.num_classes] = (type(source), classes, devices)
        return Rate(1e-6, 1e6), "so"

    monkeypatch.setattr(estimate, "training_rate", training_rate)
    monkeypatch.setattr(estimate, "labeling_rate", lambda *_: (Rate(5e-7, 1e6), None, "so"))
    plan = estimate.estimate(resolve(profile="paper", split="large"), devices=8)
    rows = {row.stage: row for row in plan.rows}
    assert measured == {1: (SyntheticPhotos, False, 8), 80: (SyntheticPhotos, True, 8)}
    # 36 * 118,287 / 16 and 60 * 3,669,905 / 16, rounded up
    assert [rows[stage].steps for stage in TRAINING] == [266_146, 13_762_144, 266_146]
    # 36 and 72 epochs: 532,291.5 steps
    assert (rows["baseline_1x"].steps, rows["baseline_2x"].steps) == (266_146, 532_292)
    assert [each.steps for each in plan.schedules] == [13_762_144, 462_762]
    # One second per image, eight devices.
    assert rows["pseudo_labeler"].seconds - rows["pseudo_labeler"].evaluation == 266_146 * 16 / 8
    # 367 shards of 10,000: 46 for the busiest device, half a second per image
    labels = rows["pseudo_labels"]
    assert labels.seconds == 46 * 10_000 * 0.5
    assert labels.labels == 366_990_500 and labels.labels_used == round(3_669_905 * 860_001 / 118_287)
    note = "pool: 3,669,905 images, not on disk: the paper's number, synthetic photographs measured"
    assert note in plan.notes
    data = str(nothing_on_disk / "datasets")
    assert any(note.startswith(f"missing data: {data}/coco/train2017 and 11 more parts") for note in plan.notes)
    assert any("no communication cost assumed" in note for note in plan.notes)
    assert any("share its cores" in note for note in plan.notes) == (not torch.cuda.is_available())
    assert not (nothing_on_disk / "runs").exists()


def test_a_strong_warmup_is_measured_with_its_own_augmentation(monkeypatch, nothing_on_disk):
    """Only pseudo-labeled images are moved and erased, so the pseudo labeler's rate is not the warm-up's."""
    measured = []

    def training_rate(config, model, train, source, sizes, *, classes, pseudo_labeled, devices):
        measured.append(pseudo_labeled)
        return Rate(3e-6 if pseudo_labeled else 1e-6, 1e6), "so"

    monkeypatch.setattr(estimate, "training_rate", training_rate)
    monkeypatch.setattr(estimate, "labeling_rate", lambda *_: (Rate(5e-7, 1e6), None, "so"))
    for kind, expected in (("weak", [False, False]), ("strong", [False, True, False])):
        measured.clear()
        rows = {row.stage: row for row in estimate.estimate(resolve(profile="paper", augment=kind)).rows}
        assert measured == expected
    # 462,762 steps of 16 images of 3 s
    assert rows["warmup"].seconds - rows["warmup"].evaluation == pytest.approx(462_762 * 16 * 3)


def test_the_papers_detector_is_measured_without_data_or_weights(monkeypatch, nothing_on_disk):
    monkeypatch.setattr(throughput, "PATIENCE", 0.1)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # a download would fail
    config = resolve(profile="paper", size=64, batch_size=1)
    alone = {name: replace(getattr(config, name), workers=0) for name in ("pseudo_labeler", "finetune")}
    plan = estimate.estimate(replace(config, **alone))
    rows = {row.stage: row for row in plan.rows}
    labeler = rows["pseudo_labeler"]
    assert rows["finetune"].kept > labeler.kept > 100e6  # Swin-T and its head; finetuning has 79 classes more
    # Three checkpoints: weights and AdamW's two moments, which Swin's tables of positions do not have.
    assert 3 * 2.9 < labeler.temporary / labeler.kept < 3 * 3
    assert all(math.isfinite(row.seconds) and row.seconds > 0 for row in plan.rows)
    assert any("random weights" in note and "upper bound" in note for note in plan.notes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A chain of a few steps up to its labels, in a run store of its own, planned before and after."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASSL_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setattr(throughput, "UNCOUNTED", 4)
        patch.setattr(throughput, "COUNTED", 8)
        config = resolve(profile="smoke", batch_size=2)
        config = replace(config, **{name: replace(getattr(config, name), steps=24) for name in TRAINING})
        before = estimate.estimate(config)
        labels = graph.obtain(requests.pseudo_labels(config))
        yield config, before, estimate.estimate(config), graph.require(requests.pseudo_labeler(config)), labels


def test_a_real_chain_costs_what_was_planned(trained):
    config, before, after, labeler, labels = trained
    for plan in (before, after):
        rows = {row.stage: row for row in plan.rows}
        assert 0.4 < rows["pseudo_labeler"].seconds / labeler.result["seconds"] < 2.5
        assert rows["pseudo_labeler"].kept == pytest.approx(labeler.weights.stat().st_size, rel=0.05)
        assert [rows[name].steps for name in ("finetune", "baseline_1x", "baseline_2x")] == [24, 24, 48]
    assert any(note.startswith("warmup: no finished labels") for note in before.notes)
    assert any(note.startswith("warmup: 2 images at a time") for note in after.notes)


def test_labels_are_counted_with_the_finished_pseudo_labeler(trained):
    config, _, after, labeler, labels = trained
    row = next(row for row in after.rows if row.stage == "pseudo_labels")
    store = PseudoLabelStore(labels.store, threshold=threshold_of(config, labels))
    assert row.images == len(store) == PROFILES["smoke"]["scenes"]["pool"][0]
    # Batches are composed differently, which moves scores a little.
    assert row.labels == pytest.approx(store.manifest["labels"], rel=0.1, abs=2)
    assert row.labels_used == pytest.approx(judge(config, store)["labels"], rel=0.1, abs=2)
    assert any(f"by the finished {labeler.id}" in note for note in after.notes)
    written = sum(file.stat().st_size for file in labels.store.glob("shard-*.arrow"))
    assert 0.3 < row.kept / written < 1.5  # half of such a small shard is its frame


def test_a_plan_is_checked_by_making_the_chain(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(throughput, "UNCOUNTED", 1)
    monkeypatch.setattr(throughput, "COUNTED", 3)
    command = ["plan", "--profile", "smoke", "--batch-size", "2", "--check", "--out", str(tmp_path / "check.json")]
    assert main(command) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "check.json").read_text())["rows"]}
    times = {f"{stage}, seconds" for stage in (*TRAINING, "pseudo_labels", "baseline_1x", "baseline_2x")}
    assert rows.keys() == times | {"labels in the store", "labels above the threshold", "bytes of the store"}
    config = resolve(profile="smoke", batch_size=2)
    run = graph.require(requests.pseudo_labels(config))
    assert rows["labels in the store"]["real"] == PseudoLabelStore(run.store).manifest["labels"]
    trained = graph.require(requests.pseudo_labeler(config)).result["seconds"]
    assert rows["pseudo_labeler, seconds"]["real"] > trained  # includes evaluation and writing the weights
    capsys.readouterr()
    assert main(command) == 2
    assert "pseudo_labeler run is finished already; check in another run store" in capsys.readouterr().err
    assert main([*command, "--devices", "2"]) == 2


@pytest.mark.parametrize(("split", "parts"), [("tiny", 1), ("small", 2), ("base", 3), ("large", 4)])
def test_scenes_are_counted_before_they_are_drawn(split, parts, nothing_on_disk):
    """Of the smoke profile's four parts of one pool, tiny is the first and large is all of them."""
    config, sizes = resolve(profile="smoke", split=split), PROFILES["smoke"]["scenes"]["pool"]
    count = sum(sizes[:parts])
    data = estimate.survey(config)
    assert estimate.scene_count(config) == data.images["pool"] == data.images["warmup"] == count
    assert len(data.pool) == sizes[0] and ("not drawn yet" in data.notes[1]) == (split != "tiny")


def test_synthetic_photos_are_training_samples(tmp_path):
    images = SyntheticPhotos(tmp_path)
    assert len(images) == 16 and (images.heights > images.widths).sum() == 4  # a quarter are portraits
    samples = Samples(images, lambda image, target: (image, target), masks=True, classes=True)
    image, target, _, unreadable = samples[(0, 11)]
    assert tuple(image.shape) == (3, images.heights[11], images.widths[11]) and not unreadable
    assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"]) > 0
    for box, mask in zip(target["boxes"], target["masks"], strict=True):
        y, x = torch.nonzero(mask, as_tuple=True)
        tight = torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1])
        assert (tight - box).abs().max() <= 2  # ellipses end within two pixels of their boxes


def test_impossible_numbers_of_devices_raise():
    config = resolve(profile="smoke")
    for devices in (0, -1, 1.5, True, "2"):
        with pytest.raises(ConfigError, match="is not a number of processes; use an integer from 1"):
            estimate.estimate(config, devices=devices)
    with pytest.raises(ConfigError, match="devices=3 does not divide batch_size=8 of pseudo_labeler"):
        estimate.estimate(config, devices=3)
    parts = replace(config, warmup=replace(config.warmup, accumulate=4))
    with pytest.raises(ConfigError, match="accumulate=4 of warmup does not divide the 2 images of each of 4 device"):
        estimate.check_devices(parts, 4)
    estimate.check_devices(parts, 2)


def test_missing_data_that_was_named_is_an_error(nothing_on_disk, capsys):
    mine = str(nothing_on_disk / "mine.json")
    with pytest.raises(DataError, match="mine.json"):
        estimate.estimate(resolve(profile="paper", labeled=mine, val=mine))
    assert main(["plan", "--profile", "smoke", "--devices", "3"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: devices=3 does not divide")


def test_the_command_prints_the_plan_and_writes_it(monkeypatch, tmp_path, capsys):
    asked = {}

    def planned(config, *, devices):
        asked.update(epochs=config.warmup.epochs, devices=devices)
        return Plan("title", (Row("pseudo_labels", 5, 0, 7200, 0.0, 1, labels=9),), ("a note",), str(tmp_path), 10)

    monkeypatch.setattr(estimate, "estimate", planned)
    file = tmp_path / "plan.json"
    command = ["plan", "--devices", "2", "--stage", "warmup", "--epochs", "12", "--out", str(file)]
    assert main(command) == 0 and asked == {"epochs": 12, "devices": 2}
    assert capsys.readouterr().out.startswith("title\n")
    kept = json.loads(file.read_text())
    assert kept["rows"][0]["hours"] == 2 and kept["rows"][0]["labels"] == 9 and kept["notes"] == ["a note"]
    assert {"torch", "device", "date"} <= kept["environment"].keys() and kept["needed"] == 1
