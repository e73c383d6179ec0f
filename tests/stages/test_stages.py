"""The stages end to end at the smallest profile: found again, killed and resumed, started from one another."""

import itertools
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cassl_lib import paths
from cassl_lib.config import PARTS, Config
from cassl_lib.data import datasets
from cassl_lib.errors import ConfigError, DataError, MissingRun, PseudoLabelError
from cassl_lib.labels.coco import from_coco, to_coco
from cassl_lib.labels.shards import finish, write_shard
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.report import pictures
from cassl_lib.report.gather import gather
from cassl_lib.resolve import resolve, to_json
from cassl_lib.runs import Run
from cassl_lib.stages import choice, graph, pseudo_labels, requests
from cassl_lib.stages.graph import find, obtain, require
from cassl_lib.stages.models import check_trained, class_agnostic_model, load_detector, model_config
from cassl_lib.tables import summary
from cassl_lib.training import engine

PATIENCE = 120  # seconds until a process that does nothing is a failure


def settings(**parameters) -> Config:
    """Smoke, with a pseudo labeler that detects something, and mask losses that draw from the random stream."""
    config = resolve(profile="smoke", **parameters)
    return replace(
        config,
        model=replace(config.model, score_threshold=0.01, mask_proposals=16),
        pseudo_labeler=replace(config.pseudo_labeler, steps=30, checkpoint_every=100),
        pseudo_labels=replace(config.pseudo_labels, keep=0.15, threshold=0.2, shard_size=1),
        warmup=replace(config.warmup, steps=12),
        finetune=replace(config.finetune, steps=3),
    )


@pytest.fixture(scope="module")
def config() -> Config:
    return settings()


@pytest.fixture(scope="module")
def chain(config, tmp_path_factory) -> dict[str, Run]:
    """Every stage once, in a store of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASSL_RUNS", str(tmp_path_factory.mktemp("chain")))
        cassl = obtain(requests.finetune(config))  # makes its inputs on the way
        obtain(requests.finetune(config, requests.pseudo_labeler(config)))
        for baseline in requests.baselines(config):
            obtain(baseline)
        return summary.chain_runs(config) | {"cassl": cassl}


@pytest.fixture
def in_chain(chain, monkeypatch) -> Path:
    """The chain's store as the current one."""
    store = chain["cassl"].folder.parent
    monkeypatch.setenv("CASSL_RUNS", str(store))
    return store


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """An empty store; its name has a space."""
    store = tmp_path / "my runs"
    monkeypatch.setenv("CASSL_RUNS", str(store))
    return store


# ---- the chain ----


def test_every_stage_leaves_a_result(chain, config):
    results = {name: run.result for name, run in chain.items()}
    assert all(run.finished and run.id.startswith(results[name]["stage"]) for name, run in chain.items())
    assert results["pseudo_labels"]["inputs"] == {"pseudo_labeler": chain["pseudo_labeler"].id}
    assert results["warmup"]["inputs"] == {"pseudo_labels": chain["pseudo_labels"].id}
    assert results["cassl"]["inputs"] == {"warmup": chain["warmup"].id}
    assert (
        results["objects_ga"]["inputs"] == {"pseudo_labeler": chain["pseudo_labeler"].id}
        and results["baseline"]["inputs"] == {}
    )
    assert list(results["warmup"]["metrics"]) == ["box_agnostic", "mask_agnostic"]
    assert list(results["cassl"]["metrics"]) == ["box", "box_agnostic", "mask", "mask_agnostic"]
    assert {name: result["steps"] for name, result in results.items() if name not in ("pseudo_labels", "baseline")} == {
        "pseudo_labeler": 30,
        "warmup": 12,
        "cassl": 3,
        "objects_ga": 3,
        "baseline_1x": 3,
        "baseline_2x": 6,
    }
    assert results["baseline"] in (results["baseline_1x"], results["baseline_2x"])
    assert results["pseudo_labels"]["images"] == results["warmup"]["images"] == 16 and results["cassl"]["images"] == 16
    assert results["pseudo_labels"]["unreadable"] == [] and results["cassl"]["learning_rate"] == 0.002  # 0.004 * 8 / 16


def test_the_pseudo_labels_are_worth_training_on(chain):
    """Guards the other tests: pseudo labels exist, so boxes and masks are trained on."""
    metrics = chain["pseudo_labels"].result["metrics"]
    assert metrics["labels"] > 16 and 0 < metrics["recall"] <= 1
    store = PseudoLabelStore(chain["pseudo_labels"].store, threshold=0.0)
    assert min(item["scores"].min() for item in store if len(item["scores"])) >= 0.15  # `keep`
    assert store.manifest["labels"] > metrics["labels"]  # those between `keep` and the threshold
    assert all(entry["loss_box"] > 0 and entry["loss_mask"] > 0 for entry in chain["warmup"].history)
    assert [entry["step"] for entry in chain["warmup"].history] == [2, 4, 6, 8, 10, 12]
    losses = [entry["loss_cls"] for entry in chain["pseudo_labeler"].history]
    assert losses[-1] < losses[0] / 2


def test_a_run_can_be_made_again_from_what_it_wrote(chain, config):
    for name, run in chain.items():
        assert name.startswith("baseline") or run.config == config
    assert chain["baseline_2x"].config == requests.longer(config, "finetune", 2)
    model = load_detector(chain["cassl"])
    weights = load_file(chain["cassl"].weights)
    assert (
        not model.training and model.config.num_classes == 12 and model.config == replace(config.model, num_classes=12)
    )
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_the_same_request_finds_the_finished_run(chain, config, in_chain, monkeypatch):
    def work(*_, **__):
        raise AssertionError("a finished run was worked on")

    monkeypatch.setattr(engine, "train", work)
    monkeypatch.setattr(pseudo_labels, "label_pool", work)
    before = {path: path.stat().st_mtime_ns for path in in_chain.rglob("result.json")}
    assert obtain(requests.finetune(config)) == chain["cassl"]
    assert obtain(requests.finetune(config, requests.pseudo_labeler(config))) == chain["objects_ga"]
    assert require(requests.baseline(config)) == chain["baseline_1x"]
    assert require(requests.warmup(config)) == chain["warmup"]
    assert obtain(requests.pseudo_labels(replace(config, make_inputs=False))) == chain["pseudo_labels"]
    assert {path: path.stat().st_mtime_ns for path in in_chain.rglob("result.json")} == before


def test_the_summary_holds_the_chains_numbers(chain, config, in_chain):
    numbers, file = summary.summarize(config)
    written = json.loads(file.read_text())
    assert file == in_chain / "summary.json" and numbers.items() <= written.items()
    assert numbers["pseudo_labels"] == chain["pseudo_labels"].result["metrics"]["labels"]
    assert numbers["labeler_agnostic_ap"] == chain["pseudo_labeler"].result["metrics"]["box_agnostic"]["AP"]
    assert written["runs"] == {name: run.id for name, run in chain.items()}
    assert "CA-SSL, Objects (P,A)" in summary.table(numbers)


def test_the_chain_is_drawn(config, in_chain, tmp_path):
    gathered = json.loads(json.dumps(gather(config)))  # as the report reads it
    for file in pictures.save(pictures.draw(gathered), tmp_path / "pictures"):
        with Image.open(file) as picture:
            assert picture.width > 500


# ---- where finetuning starts ----


class Caught(Exception):
    """Carries the weights that training would have started with."""


def weights_at_the_start(request) -> dict[str, torch.Tensor]:
    def train(procedure, *_, **__):
        raise Caught({name: value.clone() for name, value in procedure.model.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Caught) as caught:
        patch.setattr(engine, "train", train)
        patch.setenv("CASSL_RUNS", str(paths.runs() / "probe"))  # the runs themselves are finished
        obtain(request)
    return caught.value.args[0]


def parts_equal(first, second) -> set[str]:
    """The parts, as Table 9 calls them, whose weights are the same."""
    equal = {}
    for name, value in first.items():
        part = "classifier" if "class_logits" in name else name.split(".")[0]
        equal[part] = equal.get(part, True) and value.shape == second[name].shape and torch.equal(value, second[name])
    return {part for part, same in equal.items() if same}


def test_finetuning_starts_from_its_input(chain, config, in_chain):
    warmed, labeler = load_file(chain["warmup"].weights), load_file(chain["pseudo_labeler"].weights)
    scratch = weights_at_the_start(requests.baseline(config))
    assert parts_equal(scratch, warmed) == parts_equal(scratch, labeler) == set()
    default = weights_at_the_start(requests.finetune(config, chain["warmup"]))
    assert parts_equal(default, warmed) == {"backbone", "neck", "head"}  # twelve classes: the classifier is new
    assert parts_equal(default, scratch) == {"classifier"}  # finetuning and baseline share their random streams
    from_labeler = weights_at_the_start(requests.finetune(config, chain["pseudo_labeler"]))
    assert parts_equal(from_labeler, labeler) == {"backbone", "neck", "head"}
    backbone = weights_at_the_start(requests.finetune(config, chain["warmup"], parts=("backbone",)))
    assert parts_equal(backbone, warmed) == {"backbone"}
    everything = weights_at_the_start(requests.finetune(config, chain["warmup"], parts=PARTS))
    weight = everything["head.class_logits.weight"]
    assert weight.shape[0] == 12 and torch.equal(weight, warmed["head.class_logits.weight"].expand_as(weight))


def test_every_stage_starts_from_random_weights_of_its_own(chain, config, in_chain):
    requested = (
        requests.pseudo_labeler(config),
        requests.warmup(config, chain["pseudo_labels"]),
        requests.baseline(config),
    )
    starts = [weights_at_the_start(request) for request in requested]
    for first, second in itertools.combinations(starts, 2):
        assert parts_equal(first, second) == set()
    assert parts_equal(starts[1], load_file(chain["pseudo_labeler"].weights)) == set()
    again = weights_at_the_start(requested[0])
    assert parts_equal(starts[0], again) == {"backbone", "neck", "head", "classifier"}


def first_samples(request) -> list[tuple[list[int], list[torch.Tensor]]]:
    """Ids and images of the first two batches that the stage would be trained on."""

    def train(procedure, loader_from, **_):
        raise Caught([(ids, images) for images, _, ids, _ in itertools.islice(loader_from(0), 2)])

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Caught) as caught:
        patch.setattr(engine, "train", train)
        patch.setenv("CASSL_RUNS", str(paths.runs() / "probe"))
        obtain(request)
    return caught.value.args[0]


def test_finetuning_does_not_repeat_the_samples_of_the_pseudo_labeler(chain, config, in_chain):
    labeler = first_samples(requests.pseudo_labeler(config))
    finetuned = first_samples(requests.finetune(config, chain["warmup"]))
    assert [ids for ids, _ in labeler] != [ids for ids, _ in finetuned]
    drawn = [{image.numpy().tobytes() for _, images in batches for image in images} for batches in (labeler, finetuned)]
    assert not drawn[0] & drawn[1]  # the same images, but no sample is augmented alike
    baseline = first_samples(requests.baseline(config))
    assert [ids for ids, _ in baseline] == [ids for ids, _ in finetuned]  # so that the two are compared in pairs


def test_a_seed_draws_its_own_labeled_images(config):
    chosen = [set(datasets.labeled_set(replace(config, seed=seed)).ids.tolist()) for seed in range(3)]
    whole = set(datasets.labeled_set(replace(config, labeled_images=0)).ids.tolist())
    assert [len(ids) for ids in chosen] == [16] * 3 and len(whole) == 24
    assert all(ids < whole for ids in chosen) and len(set(map(frozenset, chosen))) == 3
    entities = datasets.labeled_set(config, "entities")
    assert set(entities.ids.tolist()) == chosen[0]  # the same images, whatever is learned of them
    objects = datasets.labeled_set(config)
    whole_set = datasets.labeled_set(replace(config, labeled_images=0))
    for drawn, every in (
        (objects, whole_set),
        (entities, datasets.labeled_set(replace(config, labeled_images=0), "entities")),
    ):
        for index in range(len(drawn)):
            row = every.ids.tolist().index(drawn.image_id(index))
            ours, theirs = drawn.annotations(index), every.annotations(row)
            assert all(np.array_equal(ours[key], theirs[key]) for key in ("boxes", "labels", "masks"))
            assert drawn.image_path(index) == every.image_path(row)
    with pytest.raises(DataError, match="labeled_images=25, but it has 24 images; ask for fewer"):
        datasets.labeled_set(replace(config, labeled_images=25))


def test_unknown_stages_starts_inputs_and_parts_are_rejected(chain, config, in_chain):
    with pytest.raises(
        ConfigError, match="stage='tune' is not allowed; use one of: pseudo_labeler, pseudo_labels, warm"
    ):
        requests.request("tune", config)
    with pytest.raises(ConfigError, match="start='scratch': pseudo_labeler starts from no run; leave it out"):
        requests.request("pseudo_labeler", config, start="scratch")
    with pytest.raises(ConfigError, match="start='imagenet' is not allowed for finetune; use one of: warmup, pseudo_"):
        requests.request("finetune", config, start="imagenet")
    with pytest.raises(ConfigError, match=r"input='warmup-\w+': warmup does not start from a warmup run"):
        requests.request("warmup", config, run=chain["warmup"])
    with pytest.raises(ConfigError, match=r"start='warmup' contradicts input='pseudo_labeler-\w+'"):
        requests.request("finetune", config, start="warmup", run=chain["pseudo_labeler"])
    with pytest.raises(
        ValueError, match=r"parts=\('tail',\): 'tail' is unknown; use any of: backbone, neck, head, classifier"
    ):
        obtain(requests.finetune(config, chain["warmup"], parts=("tail",)))


# ---- what is not there ----


def test_a_missing_run_names_the_command_that_makes_it(config, elsewhere):
    """The printed command, run as it stands in a shell, makes exactly the run that was missing."""
    quick = replace(config, pseudo_labeler=replace(config.pseudo_labeler, steps=1))
    for request in (requests.warmup(quick), requests.pseudo_labels(quick), requests.pseudo_labeler(quick)):
        assert find(request) is None
        with pytest.raises(MissingRun) as caught:
            require(request)
    with pytest.raises(MissingRun) as on_the_way:  # an input is not made either where the profile forbids it
        obtain(requests.finetune(replace(quick, make_inputs=False)))
    assert str(on_the_way.value).splitlines()[0] == str(caught.value).splitlines()[0]
    command = str(caught.value).splitlines()[1].strip()
    assert command.startswith("python -m cassl_lib run pseudo_labeler --config ")
    python, *arguments = shlex.split(command)
    done = subprocess.run([sys.executable, *arguments], cwd=paths.REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = require(requests.pseudo_labeler(quick))
    assert run.finished and str(run.folder) in done.stdout and run.id in str(caught.value)
    with pytest.raises(MissingRun, match=rf"pseudo_labels-\w+ is missing(.|\n)*run pseudo_labels --config .*{run.id}"):
        require(requests.warmup(quick))
    with pytest.raises(MissingRun, match="run finetune --config .* --start scratch"):
        require(requests.baseline(quick))


def test_asking_for_a_damaged_run_keeps_the_configuration_it_was_made_with(chain, config, elsewhere):
    copy_inputs(chain, elsewhere, "pseudo_labeler", "pseudo_labels")
    run = Run(elsewhere / chain["pseudo_labels"].id)
    next(run.store.glob("*.arrow")).unlink()
    other = replace(config, pseudo_labels=replace(config.pseudo_labels, threshold=0.3))  # does not decide the labels
    with pytest.raises(MissingRun, match=f"{run.id} is damaged"):
        require(requests.pseudo_labels(other))
    assert run.config == config


def test_runs_of_another_version_are_named(chain, elsewhere, tmp_path):
    copy_inputs(chain, elsewhere, "pseudo_labeler")
    old = Run(Run(elsewhere / chain["pseudo_labeler"].id).folder.rename(elsewhere / "labeler-0123456789ab"))
    with pytest.raises(ConfigError, match="labeler-0123456789ab is not a run of a detector; give a run of pseudo_l"):
        check_trained(old)
    weights = load_file(old.weights)
    save_file(weights, old.weights, metadata={"cassl": json.dumps({"model": {"centre": "mask"}})})
    with pytest.raises(MissingRun, match="written by another version of cassl .* make the run again"):
        model_config(old)


def test_looking_for_a_run_leaves_nothing_behind(config, elsewhere):
    assert find(requests.finetune(config)) is None and find(requests.pseudo_labeler(config)) is None
    assert not elsewhere.exists()


def test_one_of_several_processes_finds_a_finished_input(chain, config, in_chain, monkeypatch):
    monkeypatch.setattr(graph, "rank_and_world", lambda: (1, 2))
    assert require(requests.warmup(config)) == chain["warmup"]


# ---- killed ----


def kill_when(process: subprocess.Popen, happened) -> None:
    """Kill a process as soon as `happened()`."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert process.poll() is None, f"it ended, with {process.returncode}, before it could be killed"
        assert time.monotonic() < deadline
        try:
            process.wait(0.003)
        except subprocess.TimeoutExpired:
            continue
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def start(stage: str, config: Config, folder: Path) -> subprocess.Popen:
    file = folder / f"{stage}.json"
    file.write_text(json.dumps(to_json(config)))
    command = [sys.executable, "-m", "cassl_lib", "run", stage, "--config", str(file)]
    return subprocess.Popen(command, cwd=paths.REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def copy_inputs(chain, store: Path, *wanted: str) -> None:
    for name in wanted:
        shutil.copytree(chain[name].folder, store / chain[name].id)


def without_time(entries: list[dict]) -> list[dict]:
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]


def test_a_killed_warm_up_resumes_to_the_same_weights(chain, config, elsewhere, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    copy_inputs(chain, elsewhere, "pseudo_labeler", "pseudo_labels")
    killed = Run(elsewhere / chain["warmup"].id)
    kill_when(start("warmup", config, tmp_path), killed.checkpoint.exists)
    assert killed.checkpoint.exists() and not killed.finished and not killed.weights.exists()
    resumed = obtain(requests.warmup(config))
    assert resumed == killed and f"{killed.id}: resuming at step" in caplog.text
    assert resumed.weights.read_bytes() == chain["warmup"].weights.read_bytes()
    assert without_time(resumed.history) == without_time(chain["warmup"].history)
    assert resumed.result["metrics"] == chain["warmup"].result["metrics"]


def test_a_killed_labeling_resumes_to_the_same_store(chain, config, elsewhere, tmp_path):
    copy_inputs(chain, elsewhere, "pseudo_labeler")
    killed = Run(elsewhere / chain["pseudo_labels"].id)
    store, whole = killed.store, chain["pseudo_labels"].store
    kill_when(start("pseudo_labels", config, tmp_path), (store / "shard-00001.json").exists)
    assert not killed.finished and not (store / "manifest.json").exists()
    written = {path: path.stat().st_mtime_ns for path in store.glob("shard-0000[01].*")}
    assert obtain(requests.pseudo_labels(config)) == killed and len(written) == 4
    assert {path: path.stat().st_mtime_ns for path in written} == written  # finished shards are kept
    assert {path.name: path.read_bytes() for path in store.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }
    assert (
        len(list(store.glob("*.arrow"))) == 16 and killed.result["metrics"] == chain["pseudo_labels"].result["metrics"]
    )


# ---- data as it comes ----


def test_an_image_that_cannot_be_labeled_is_named_and_has_no_labels(chain, config, elsewhere, tmp_path):
    pool = datasets.pool(config)
    (tmp_path / "pool").mkdir()
    for index in range(3):
        shutil.copy(pool.image_path(index), tmp_path / "pool")
    cut = tmp_path / "pool" / "zz.jpg"
    cut.write_bytes(pool.image_path(3).read_bytes()[:2000])  # its header still tells the size
    own = replace(config, unlabeled=str(tmp_path / "pool"))
    labels = obtain(requests.pseudo_labels(own, chain["pseudo_labeler"]))
    assert labels.result["images"] == 4
    (lost,) = labels.result["unreadable"]
    assert lost.startswith(f"{cut} (")
    assert labels.result["metrics"].keys() == {"threshold", "labels"}  # no hidden truth, no judgment
    store = PseudoLabelStore(labels.store)
    assert [Path(store.file_name(index)).name for index in range(len(store))] == [
        pool.image_path(index).name for index in range(3)
    ]
    warmed = obtain(requests.warmup(replace(own, warmup=replace(own.warmup, steps=1)), labels))
    assert warmed.result["images"] == 3


def test_a_damaged_training_image_is_skipped_and_named(chain, config, elsewhere, tmp_path, caplog):
    labels = tmp_path / "train.json"
    labeled = datasets.labeled_set(config)
    shutil.copy(labeled.path, labels)
    shutil.copytree(labeled.folder, tmp_path / "images")
    name = str(labeled.names[5])
    (tmp_path / "images" / name).write_text("no image")
    val = datasets.validation_set(config)
    own = replace(config, labeled=str(labels), val=f"{val.path}{os.pathsep}{val.folder}", labeled_images=0)
    run = obtain(requests.baseline(own))
    assert len(run.result["unreadable"]) == 1 and name in run.result["unreadable"][0]
    message = f"{run.id}: images that could not be used: 1, e.g. {tmp_path / 'images' / name} ("
    assert any(line.startswith(message) for line in caplog.messages)


def test_a_warm_up_with_a_single_label_stays_finite_and_one_without_is_rejected(chain, config, elsewhere, caplog):
    caplog.set_level(logging.INFO)
    labels = PseudoLabelStore(chain["pseudo_labels"].store, threshold=0.0)
    scores = np.sort(np.concatenate([item["scores"] for item in labels]))
    few = replace(config.warmup, steps=2, log_every=1)

    def above(threshold):
        label = replace(config.pseudo_labels, threshold=float(threshold))
        return replace(config, profile="demo", pseudo_labels=label, warmup=few)

    run = obtain(requests.warmup(above(scores[-2]), chain["pseudo_labels"]))
    assert "1 labels above" in caplog.text
    assert min(entry["loss_box"] for entry in run.history) == 0 and run.history[-1]["loss_cls"] > 0
    assert all(torch.isfinite(value).all() for value in load_file(run.weights).values() if value.is_floating_point())
    with pytest.raises(
        DataError,
        match=r"no label has a score above the threshold 0.999; the highest score is below 0\.\d+; use a lower",
    ):
        obtain(requests.warmup(above(0.999), chain["pseudo_labels"]))


def test_boxes_alone_go_through_all_stages(elsewhere):
    config = settings(masks=False)
    short = {name: replace(getattr(config, name), steps=2) for name in ("pseudo_labeler", "warmup", "finetune")}
    config = replace(config, pseudo_labels=replace(config.pseudo_labels, keep=0.0, threshold=0.0), **short)
    config = replace(config, model=replace(config.model, score_threshold=0.0, detections_per_image=5))
    run = obtain(requests.finetune(config))
    assert list(run.result["metrics"]) == ["box", "box_agnostic"] and "loss_mask" not in run.history[-1]
    labels = require(requests.pseudo_labels(config))
    first = PseudoLabelStore(labels.store, threshold=0)[0]
    assert len(first["boxes"]) == 5 and first["rles"] == []
    with pytest.raises(ValueError, match="its labels have no masks; train with masks=False"):
        obtain(requests.warmup(replace(config, model=settings().model), labels))


def test_validation_classes_must_be_the_training_classes(config, elsewhere, tmp_path):
    val = datasets.validation_set(config)
    data = json.loads(val.path.read_text())
    gone = data["categories"].pop(3)
    data["annotations"] = [entry for entry in data["annotations"] if entry["category_id"] != gone["id"]]
    (tmp_path / "val.json").write_text(json.dumps(data))
    labeled = datasets.labeled_set(config)
    own = replace(
        config,
        labeled=f"{labeled.path}{os.pathsep}{labeled.folder}",
        val=f"{tmp_path / 'val.json'}{os.pathsep}{val.folder}",
    )
    with pytest.raises(DataError, match="val.json: its classes differ from those of"):
        obtain(requests.baseline(own))
    (tmp_path / "val.json").write_text(json.dumps(data | {"annotations": []}))
    with pytest.raises(DataError, match="val.json: no usable annotation"):
        obtain(requests.pseudo_labeler(own))


def test_the_pools_own_image_is_trained_on_with_its_own_labels(chain, config, in_chain):
    """The link between store and image: the file that a row names is the one the labels were found on."""
    pool, store = datasets.pool(config), PseudoLabelStore(chain["pseudo_labels"].store)
    for index in range(len(pool)):
        assert store.image_id(index) == pool.image_id(index)
        item = store[index]
        assert not Path(item["file_name"]).is_absolute()  # so that another machine's data root may be another
        assert paths.image(item["file_name"]) == pool.image_path(index)
        with Image.open(paths.image(item["file_name"])) as image:
            assert image.size == (item["width"], item["height"])
        assert (item["boxes"][:, 2] <= item["width"]).all() and (item["boxes"][:, 3] <= item["height"]).all()


def test_a_warm_up_on_entities_is_one_word_away(config, chain, monkeypatch):
    monkeypatch.setenv("CASSL_RUNS", str(chain["cassl"].folder.parent))
    entities = replace(config, annotation="entities")
    panoptic = obtain(requests.finetune(replace(entities, target="panoptic")))
    assert panoptic.result["classes"][:12] == chain["cassl"].result["classes"]
    assert set(panoptic.result["metrics"]) >= {"box", "mask", "panoptic", "panoptic_things", "panoptic_stuff"}
    warmup = require(requests.warmup(entities))
    assert warmup.id != chain["warmup"].id and not model_config(panoptic).one_entity_per_pixel
    assert not model_config(warmup).one_entity_per_pixel  # the small profiles' choice
    assert class_agnostic_model(replace(entities, overlap=None)).one_entity_per_pixel  # the paper profile's
    assert not class_agnostic_model(replace(entities, overlap=True)).one_entity_per_pixel
    assert class_agnostic_model(replace(config, overlap=False)).one_entity_per_pixel
    truth = datasets.validation_set(entities)
    assert len(truth.boxes) > len(datasets.validation_set(config).boxes)  # things and stuff
    # What is learned from scratch with classes does not depend on what the warm-up would have been.
    assert obtain(requests.baseline(entities)).id == chain["baseline_1x"].id


# ---- labels of others, labels with classes (Table 2) ----


def test_a_store_of_another_model_is_warmed_up_on(chain, config, elsewhere, tmp_path):
    """The labels of the pool go out as COCO results, come back as a store, and train as they would have."""
    own = PseudoLabelStore(chain["pseudo_labels"].store, threshold=0.0)
    coco = to_coco(own)
    coco["images"] = [image | {"file_name": str(paths.image(image["file_name"]))} for image in coco["images"]]
    results = [{key: entry[key] for key in entry.keys() - {"id", "iscrowd"}} for entry in coco["annotations"]]
    (tmp_path / "info.json").write_text(json.dumps({"images": coco["images"], "categories": coco["categories"]}))
    (tmp_path / "results.json").write_text(json.dumps(results))
    store = from_coco(tmp_path / "info.json", tmp_path / "store", results=tmp_path / "results.json", labeler="other")
    others = replace(config, store=str(store.folder))
    run = obtain(requests.warmup(others))
    assert run.result["inputs"] == {} and run.result["data"]["store"] == store.fingerprint
    assert without_time(run.history) == without_time(chain["warmup"].history)
    assert run.id != chain["warmup"].id
    assert not list(elsewhere.glob("pseudo_labels-*"))  # nothing was labeled for it
    finetuned = obtain(requests.finetune(others))
    assert finetuned.result["inputs"] == {"warmup": run.id}


def test_a_store_of_this_run_store_is_known_as_its_run(chain, config, in_chain):
    named = resolve(profile="smoke", store=chain["pseudo_labels"].id[:18])
    assert named.store == str(chain["pseudo_labels"].store)
    assert require(requests.warmup(replace(config, store=named.store))) == chain["warmup"]
    shutil.copytree(chain["pseudo_labels"].folder, in_chain / "pseudo_labels-0")
    with pytest.raises(ConfigError, match=r"store='pseudo_labels-' is ambiguous, it matches \d runs: pseudo_labels-0"):
        resolve(profile="smoke", store="pseudo_labels-")
    with pytest.raises(ConfigError, match=r"store='\*' is not a finished pseudo-label store"):
        resolve(profile="smoke", store="*")
    shutil.rmtree(in_chain / "pseudo_labels-0")


def test_the_length_of_a_baseline_does_not_depend_on_the_pool(config):
    """Warm-up and finetuning together would be 1,897 epochs of COCO at the paper profile, split large."""
    own = replace(config, finetune=replace(config.finetune, steps=0, epochs=36.0), baseline_lengths=(1, 2))
    assert [each.config.finetune.epochs for each in requests.baselines(own)] == [36, 72]
    assert [each.key for each in requests.baselines(own)] == [
        each.key for each in requests.baselines(replace(own, split="large"))
    ]


def test_the_best_baseline_on_held_out_images_is_compared(chain, config, in_chain, monkeypatch):
    runs = [chain["baseline_1x"], chain["baseline_2x"]]
    for better in (0, 1):
        numbers = {run.id: {"box": {"AP": float(place == better)}} for place, run in enumerate(runs)}
        monkeypatch.setattr(choice, "heldout_metrics", lambda run, config: numbers[run.id])  # noqa: B023
        assert choice.best_of(runs, config) == runs[better]
    assert choice.best_of(runs, replace(config, heldout=None)) == runs[0]  # nothing to choose on: finetuning's length
    assert choice.best_of([runs[0], None], config) is None and choice.best_of(runs[:1], config) == runs[0]


def test_numbers_on_held_out_images_are_computed_once(chain, config, in_chain, monkeypatch):
    run = chain["baseline_1x"]
    first = choice.heldout_metrics(run, config)
    monkeypatch.setattr(choice, "evaluate_detector", None)
    assert choice.heldout_metrics(run, config) == first and first["box"].keys() >= {"AP", "AP75"}


def test_the_best_weights_on_held_out_images_are_kept(config, elsewhere):
    watched = replace(config.pseudo_labeler, steps=4, evaluate_every=1, keep="best", learning_rate=0.0)
    result = obtain(requests.pseudo_labeler(replace(config, pseudo_labeler=watched))).result
    assert (
        result["best_step"] == 1 and "best_validation_ap" in result
    )  # nothing is learned, so the first stays the best
    with pytest.raises(ConfigError, match="there are no held-out images; give heldout"):
        obtain(requests.pseudo_labeler(replace(config, pseudo_labeler=watched, heldout=None)))


def test_labels_that_cannot_be_trained_on_are_rejected_at_once(chain, config, elsewhere, tmp_path):
    row = {"image_id": 1, "file_name": "/gone/1.jpg", "height": 20, "width": 20, "scores": [0.9]}
    write_shard(tmp_path / "boxes", 0, [row | {"boxes": [[0, 0, 9, 9]]}], "m")
    finish(tmp_path / "boxes", labeler="m", pool="p")
    boxes = replace(config, store=str(tmp_path / "boxes"))
    with pytest.raises(DataError, match="boxes: its labels have no masks; train with masks=False"):
        obtain(requests.warmup(boxes))
    without_masks = replace(boxes, model=settings(masks=False).model)
    with pytest.raises(DataError, match="none of its images can be read, such as /gone/1.jpg; restore them"):
        obtain(requests.warmup(without_masks))
    with pytest.raises(DataError, match=r"its classes \['object'\] differ from those of"):
        obtain(requests.warmup(replace(without_masks, class_specific=True)))
    shutil.copytree(chain["pseudo_labels"].store, tmp_path / "damaged")
    shard = tmp_path / "damaged" / "shard-00003.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(PseudoLabelError, match="shard-00003.arrow is damaged"):
        obtain(requests.warmup(replace(config, store=str(tmp_path / "damaged"))))


def test_class_specific_labels_warm_up_a_detector_that_knows_classes(config, elsewhere):
    specific = replace(config, class_specific=True)
    warmed = obtain(requests.warmup(specific))
    labels = require(requests.pseudo_labels(specific))
    store = PseudoLabelStore(labels.store, threshold=0.0)
    names = datasets.labeled_set(config).classes
    assert [category["name"] for category in store.categories] == names == warmed.result["classes"]
    assert model_config(warmed).num_classes == 12 and "box" in warmed.result["metrics"]
    assert len(np.unique(store.flat()["labels"])) > 1
    assert require(requests.pseudo_labeler(specific)).result["settings"]["class_specific"] is True
    finetuned = obtain(requests.finetune(specific))
    assert finetuned.result["inputs"] == {"warmup": warmed.id} and len(store.labels_by_class()) == 12
    assert store.labels_by_class().sum() == store.manifest["labels"]
    assert [category["id"] for category in store.categories] == datasets.labeled_set(config).category_ids.tolist()
