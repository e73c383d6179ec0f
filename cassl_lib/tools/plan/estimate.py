"""What the chain will cost, before it is spent: time, disk and labels of every stage, from a short measurement.

    estimate    looks, measures on this machine and counts: what a notebook or the shell calls
    look        the numbers of images, and what of the chain is there
    measure     the pace of each stage
    table       an estimate as text

The measuring itself is in `cassl_lib.pace`, the counting in `cassl_lib.forecast`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cassl_lib import paths
from cassl_lib.config import Config
from cassl_lib.data import datasets, scenes
from cassl_lib.data.pseudo_labeled import PseudoLabeled
from cassl_lib.errors import ConfigError, DataError, MissingRun
from cassl_lib.evaluation.detector import TEST_BATCH
from cassl_lib.paper import IMAGES
from cassl_lib.resolve import COCO, STAGES
from cassl_lib.runs import Run, environment
from cassl_lib.stages import all_stages as stages
from cassl_lib.tools.plan.cost import Estimate, forecast
from cassl_lib.tools.plan.cost import table as table  # for a notebook: plan.table(plan.estimate(config))
from cassl_lib.tools.plan.synthetic_photos import StandIns
from cassl_lib.tools.plan.throughput import (
    LABEL_BYTES,
    ROW_BYTES,
    Labels,
    Pace,
    Some,
    labeling_pace,
    test_canvas,
    training_canvas,
    training_pace,
)
from cassl_lib.training import engine

VAL_IMAGES = 5_000  # of COCO val2017
PANOPTIC_CLASSES = 133  # COCO's things and stuff
COCO_LABELS = 860_001 / 118_287  # objects of an image of COCO train2017
MASK_BYTES = 270  # compressed run lengths of an object of COCO train2017, mean of 2,900
PATH_BYTES = 40  # of an image below the data root


@dataclass(frozen=True)
class Data:
    """What a configuration works on; None for what is not on disk or not finished."""

    images: dict[str, int]  # numbers of labeled, pool, val; the paper's for what is not on disk
    labeled: object | None = None  # the labeled images as stage 1 reads them
    target: object | None = None  # the same as finetuning reads them
    pool: object | None = None
    labeler: Run | None = None  # finished
    pseudo: PseudoLabeled | None = None  # finished labels, above the threshold
    notes: tuple[str, ...] = ()


def estimate(config: Config, *, devices: int = 1) -> Estimate:
    """What chain and baseline of `config` will cost on `devices` devices like the present one.

    Takes seconds at the demo profile, less than two minutes at the paper's on a CPU. Downloads and trains nothing;
    the profile's own data need not be there. What is already finished is not subtracted.

    Raises:
        ConfigError: a number of devices that does not divide the batches.
        DataError: data that the configuration names and that is not there.
    """
    check_devices(config, devices)
    data = look(config)
    with tempfile.TemporaryDirectory() as folder:
        paces, labels, notes = measure(config, data, StandIns(Path(folder)), devices=devices)
    if labels is None:
        labels, note = assumed_labels(config, data)
        notes.append(note)
    rows = forecast(config, data.images, paces, labels, devices=devices)
    device, where = engine.device_of_process(), environment()
    machine = f"{where['device']}, {engine.precision_of(config.labeler, device)}"
    machine += f", {where['threads']} threads" if device.type == "cpu" else ""
    title = f"profile {config.profile}, split {config.split}, devices: {devices}, each as the one measured ({machine})"
    notes = (*data.notes, *notes, *_assumptions(devices, device))
    return Estimate(title, tuple(rows), notes, str(paths.runs()), _free(paths.runs()))


def check_devices(config: Config, devices: int) -> None:
    """Refuse what is no number of processes, or does not divide a batch."""
    if not isinstance(devices, int) or isinstance(devices, bool) or devices < 1:
        raise ConfigError(f"devices={devices!r} is not a whole number of processes; use 1 or more")
    for name in STAGES:
        if (batch := getattr(config, name).batch_size) % devices:
            raise ConfigError(f"devices={devices} does not divide the batch of {name}, batch_size={batch}; change one")


def look(config: Config) -> Data:
    """The data and finished runs of `config`, as far as they are there. Large pools of scenes are not drawn for it."""
    own = {name: getattr(config, name) == str(paths.datasets() / COCO[name]) for name in ("labeled", "val")}
    labeled = target = _found(lambda: datasets.labeled_set(config), own["labeled"])
    if (annotation := stages.TARGETS[config.target]) != config.annotation:
        target = _found(lambda: datasets.labeled_set(config, annotation), own["labeled"])
    val = _found(lambda: datasets.validation_set(config), own["val"])
    drawn = config.unlabeled != "scenes" or config.split == "tiny" or _drawn(config)
    pool = None
    if not config.labels:
        pool = _found(
            lambda: datasets.pool(config if drawn else replace(config, split="tiny")), config.unlabeled == "split"
        )
    images = {"labeled": IMAGES["train"], "pool": IMAGES[config.split], "val": VAL_IMAGES}
    images |= {name: len(it) for name, it in (("labeled", labeled), ("pool", pool), ("val", val)) if it is not None}
    there = "on disk"
    absent = "not on disk: counted as in the paper, measured on stand-ins"
    where = {
        name: there if it is not None else absent for name, it in (("labeled", labeled), ("pool", pool), ("val", val))
    }
    if not drawn:
        images["pool"] = scene_count(config)
        where["pool"] = "still to be drawn: counted as they will be, measured on those of split tiny"
    labeler = store = None
    if labeled is not None and val is not None:
        labeler = finished(lambda: stages.train_labeler(config, existing=True))
    if config.labels or (labeler and drawn and pool is not None):
        store = finished(lambda: stages.labels_of(config, existing=True)[0])
    if config.labels:
        images["pool"], where["pool"] = 0, f"none to label: {config.labels} has labels"
    images["warmup"] = len(store) if store else images["pool"]
    notes = tuple(f"{name}: {images[name]:,} images, {place}" for name, place in where.items())
    return Data(images, labeled, target, pool, labeler, PseudoLabeled(store) if store else None, notes)


def _found(load, own: bool):
    """What `load` returns; None where that is the profile's own data and not on disk."""
    try:
        return load()
    except DataError:
        if own:
            return None
        raise


def finished(find):
    """What `find` returns of finished runs; None where one is missing."""
    with contextlib.suppress(MissingRun):
        return find()


def _drawn(config: Config) -> bool:
    """Whether all scenes of the pool are on disk."""
    manifest = datasets.scene_folder(config) / "manifest.json"
    return manifest.exists() and set(scenes.SPLITS[config.split]) <= json.loads(manifest.read_text())["units"].keys()


def scene_count(config: Config) -> int:
    """Scenes in the pool of `config`, drawn or not."""
    spec = scenes.SceneSpec(**dict(config.scenes))
    fields = [unit if unit == "coco" else f"{unit.rpartition('_')[0]}_part" for unit in scenes.SPLITS[config.split]]
    return sum(getattr(spec, field) for field in fields)


def measure(
    config: Config, data: Data, stand_ins: StandIns, *, devices: int
) -> tuple[dict[str, Pace], Labels | None, list[str]]:
    """Paces of labeler, warmup, finetune, labels and evaluation; what an image of the pool gets, if there is a labeler;
    how each was measured.
    """
    labeled, target, pool = data.labeled or stand_ins, data.target or stand_ins, data.pool or stand_ins
    classes = config.model.num_classes if config.target == "instances" else PANOPTIC_CLASSES
    finetuned = replace(config.model, num_classes=len(data.target.classes) if data.target else classes)
    warmed_up = stages.warmed_up_model(config, list(labeled.classes))
    of_labeled, of_pool = np.stack([labeled.heights, labeled.widths], axis=1), Some(pool).sizes
    paces, notes = {}, {}

    def train(name: str, model, source, sizes, classes: bool) -> None:
        options = {"classes": classes, "devices": devices}
        paces[name], notes[name] = training_pace(config, model, getattr(config, name), source, sizes, **options)

    train("labeler", warmed_up, labeled, of_labeled, config.class_specific)
    if data.pseudo and len(data.pseudo):
        train("warmup", warmed_up, data.pseudo, of_pool, config.class_specific)
    else:
        pixels = training_canvas(config.augment, of_pool, config.warmup.batch_size // devices)
        paces["warmup"] = replace(paces["labeler"], pixels=pixels)
        notes["warmup"] = "no finished labels to train on: as fast as the labeler, on images of the pool's sizes"
    train("finetune", finetuned, target, of_labeled, True)
    paces["labels"], labels, notes["labels"] = labeling_pace(config, warmed_up, data.labeler, pool)
    paces["evaluation"] = replace(paces["labels"], pixels=test_canvas(config.augment, of_labeled, TEST_BATCH))
    return paces, labels, [f"{name}: {note}" for name, note in notes.items()]


def assumed_labels(config: Config, data: Data) -> tuple[Labels, str]:
    """Where no labeler is: as many in the store as there may be, as many used as labeled images have objects."""
    stored, used, origin = config.model.detections_per_image, COCO_LABELS, "an image of COCO train2017 has"
    if data.labeled is not None:
        used, origin = len(data.labeled.boxes) / len(data.labeled), "a labeled image has"
    each = LABEL_BYTES + (MASK_BYTES + 4 if config.model.masks else 0)
    note = f"labels: without a finished labeler an image is assumed to get {stored} of {each} bytes in the store, as "
    note += f"many as there can be, and {used:.1f} above the threshold, as many objects as {origin}"
    return Labels(stored, used, stored * each + ROW_BYTES + PATH_BYTES), note


def _assumptions(devices: int, device: torch.device) -> list[str]:
    notes = [
        "time: of the stages' own loops with reading; grows with the pixels of a batch, its images padded to one size",
        "evaluation: detection in the validation images, as fast as labeling; the counting of AP is left out",
        "reading: as fast as in this measurement; a disk that is slower than the system's cache takes longer",
        "baseline: the steps of warm-up and finetuning together",
        "disk: weights of each stage, the store of labels, the pool's index; two checkpoints while a stage trains",
        "finished runs: not subtracted; a stage that finds its finished run costs nothing again",
    ]
    if devices > 1:
        notes.append(f"devices: the time of one divided by {devices}, no loss to communication assumed")
    if devices > 1 and device.type == "cpu":
        notes.append("devices: the processes of one CPU share its cores, so they have to be as many machines")
    return notes


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
