"""The cost of a chain before it is run: time, disk and labels of every stage, from a short measurement.

    estimate    surveys the data, measures on this machine and computes the plan: for notebooks and the shell
    survey      numbers of images, and which runs of the chain are finished
    measure     the rate of each stage

Measuring is in `throughput`, the arithmetic in `cost`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cassl_lib import paths
from cassl_lib.config import TRAINING_SECTIONS, Config
from cassl_lib.data import datasets, layout, scenes
from cassl_lib.data.coco import CocoImages
from cassl_lib.data.pool.index import Pool
from cassl_lib.data.pseudo_labeled import PseudoLabeled
from cassl_lib.errors import ConfigError, DataError
from cassl_lib.evaluation.detector import TEST_BATCH
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.paper import IMAGES
from cassl_lib.resolve import COCO
from cassl_lib.runs import Run, environment
from cassl_lib.stages import graph, requests
from cassl_lib.stages.identity import ANNOTATIONS
from cassl_lib.stages.models import class_agnostic_or_specific_model
from cassl_lib.stages.pseudo_labels import threshold_of
from cassl_lib.tools.plan.canvas import evaluation_canvas, training_canvas
from cassl_lib.tools.plan.cost import Plan, rows_of, schedules_of
from cassl_lib.tools.plan.synthetic_photos import SyntheticPhotos
from cassl_lib.tools.plan.throughput import (
    LABEL_BYTES,
    ROW_BYTES,
    LabelCounts,
    PoolSample,
    Rate,
    at_once,
    labeling_rate,
    training_rate,
)
from cassl_lib.training.distributed import device_of_process
from cassl_lib.training.optimizer import precision_of

VAL_IMAGES = 5_000  # of COCO val2017
PANOPTIC_CLASSES = 133  # COCO's things and stuff
COCO_LABELS = 860_001 / 118_287  # objects per image of COCO train2017
MASK_BYTES = 270  # compressed RLE of an object of COCO train2017, mean of 2,900
PATH_BYTES = 40  # of an image below the data root


@dataclass(frozen=True)
class Survey:
    """What a configuration works on; None for what is not on disk or not finished."""

    images: dict[str, int]  # numbers of labeled, pool, val, warmup, heldout; the paper's for what is not on disk
    labeled: CocoImages | None = None  # as stage 1 reads them
    target: CocoImages | None = None  # as finetuning reads them
    pool: Pool | None = None
    labeler: Run | None = None  # finished
    pseudo: PseudoLabeled | None = None  # finished labels, above the threshold
    notes: tuple[str, ...] = ()


def estimate(config: Config, *, devices: int = 1) -> Plan:
    """The cost of chain and baselines on `devices` devices like the present one.

    Takes seconds at the demo profile, less than two minutes at the paper's on a CPU. Downloads and trains nothing;
    the profile's own data need not be there. Finished runs are not subtracted.

    Raises:
        ConfigError: a number of devices that does not divide the batches.
        DataError: data that the configuration names and that is not there.
    """
    check_devices(config, devices)
    data = survey(config)
    with tempfile.TemporaryDirectory() as folder:
        rates, labels, notes = measure(config, data, SyntheticPhotos(Path(folder)), devices=devices)
    if labels is None:
        labels, note = assumed_labels(config, data)
        notes.append(note)
    rows = rows_of(config, data.images, rates, labels, devices=devices)
    device, where = device_of_process(), environment()
    machine = f"{where['device']}, {precision_of(config.pseudo_labeler, device)}"
    machine += f", {where['threads']} threads" if device.type == "cpu" else ""
    title = f"profile {config.profile}, split {config.split}, {devices} device(s) like the one measured ({machine})"
    notes = (*data.notes, *notes, *_assumptions(config, devices, device))
    schedules = schedules_of(config, data.images, rates, devices=devices)
    return Plan(title, tuple(rows), notes, str(paths.runs()), _free(paths.runs()), schedules)


def check_devices(config: Config, devices: int) -> None:
    """Raise ConfigError unless `devices` is a positive integer that divides every stage's batches into equal parts."""
    if not isinstance(devices, int) or isinstance(devices, bool) or devices < 1:
        raise ConfigError(f"devices={devices!r} is not a number of processes; use an integer from 1")
    for name in TRAINING_SECTIONS:
        section = getattr(config, name)
        if section.batch_size % devices:
            raise ConfigError(
                f"devices={devices} does not divide batch_size={section.batch_size} of {name}; change one of them"
            )
        if section.batch_size // devices % section.accumulate:
            raise ConfigError(
                f"accumulate={section.accumulate} of {name} does not divide the {section.batch_size // devices} images "
                f"of each of {devices} device(s); change one of them"
            )


def survey(config: Config) -> Survey:
    """The data and finished runs of a configuration, as far as they exist. Large pools of scenes are not drawn."""
    # Labeled and validation images, as each stage reads them.
    own = {name: getattr(config, name) == str(paths.datasets() / COCO[name]) for name in ("labeled", "val")}
    labeled = target = _if_there(lambda: datasets.labeled_set(config), own["labeled"])
    if (annotation := ANNOTATIONS[config.target]) != config.annotation:
        target = _if_there(lambda: datasets.labeled_set(config, annotation), own["labeled"])
    val = _if_there(lambda: datasets.validation_set(config), own["val"])

    # The pool; scenes that are not drawn yet are represented by those of split tiny.
    drawn = config.unlabeled != "scenes" or config.split == "tiny" or _drawn(config)
    pool = None
    if not config.store:
        represented = config if drawn else replace(config, split="tiny")
        pool = _if_there(lambda: datasets.pool(represented), config.unlabeled == "split")

    # Numbers of images, and where each comes from.
    images = {"labeled": IMAGES["train"], "pool": IMAGES.get(config.split, 0), "val": VAL_IMAGES}
    where = {}
    for name, each in (("labeled", labeled), ("pool", pool), ("val", val)):
        images[name] = images[name] if each is None else len(each)
        where[name] = "not on disk: the paper's number, synthetic photographs measured" if each is None else "on disk"
    if not drawn:
        images["pool"] = scene_count(config)
        where["pool"] = "not drawn yet: their number is known, those of split tiny are measured"

    # Finished runs.
    labeler = store = None
    if labeled is not None and val is not None:
        labeler = graph.find(requests.pseudo_labeler(config))
    if config.store:
        store = PseudoLabelStore(config.store, threshold=threshold_of(config, None))
        images["pool"], where["pool"] = 0, f"nothing to label: {config.store} has labels"
    elif labeler and drawn and pool is not None:
        if run := graph.find(requests.pseudo_labels(config, labeler)):
            store = PseudoLabelStore(run.store, threshold=threshold_of(config, run))
    images["warmup"] = len(store) if store else images["pool"]
    if any(getattr(config, name).evaluate_every for name in TRAINING_SECTIONS) and config.heldout:
        held = _if_there(lambda: datasets.heldout_set(config), all(own.values()))
        images["heldout"] = len(held) if held else 0
    notes = tuple(f"{name}: {images[name]:,} images, {place}" for name, place in where.items())
    if words := layout.missing(datasets.needed(config)):
        notes += (words,)
    return Survey(images, labeled, target, pool, labeler, PseudoLabeled(store) if store else None, notes)


def _if_there(load, own: bool):
    """What `load` returns; None where that is the profile's own data and not on disk."""
    try:
        return load()
    except DataError:
        if own:
            return None
        raise


def _drawn(config: Config) -> bool:
    """Whether all scenes of the pool are on disk."""
    manifest = datasets.scene_folder(config) / "manifest.json"
    return manifest.exists() and set(scenes.SPLITS[config.split]) <= json.loads(manifest.read_text())["units"].keys()


def scene_count(config: Config) -> int:
    """Number of scenes in the pool of `config`, drawn or not."""
    spec = scenes.SceneSpec(**dict(config.scenes))
    return sum(scenes.unit_size(spec, unit) for unit in scenes.SPLITS[config.split])


def measure(
    config: Config, data: Survey, photos: SyntheticPhotos, *, devices: int
) -> tuple[dict[str, Rate], LabelCounts | None, list[str]]:
    """Rates of every stage and of evaluation; labels per image, if there is a pseudo labeler; how each was measured."""
    labeled, target, pool = data.labeled or photos, data.target or photos, data.pool or photos
    classes = config.model.num_classes if config.target == "instances" else PANOPTIC_CLASSES
    finetuned = replace(config.model, num_classes=len(data.target.classes) if data.target else classes)
    warmed_up = class_agnostic_or_specific_model(config, list(labeled.classes))
    of_labeled, of_pool = np.stack([labeled.heights, labeled.widths], axis=1), PoolSample(pool).sizes
    rates, notes = {}, {}

    def train(name: str, model, source, sizes, classes: bool) -> None:
        section = getattr(config, name)
        rates[name], notes[name] = training_rate(
            config, model, section, source, sizes, classes=classes, pseudo_labeled=name == "warmup", devices=devices
        )

    train("pseudo_labeler", warmed_up, labeled, of_labeled, config.class_specific)
    if data.pseudo and len(data.pseudo):
        train("warmup", warmed_up, data.pseudo, of_pool, config.class_specific)
    elif config.augment.kind == "strong":  # which moves pseudo-labeled images only, and takes longer for it
        train("warmup", warmed_up, labeled, of_pool, config.class_specific)
        notes["warmup"] += "; no finished labels to train on: labeled images, augmented as pseudo-labeled ones"
    else:
        pixels = training_canvas(config.augment, of_pool, at_once(config.warmup, devices))
        rates["warmup"] = replace(rates["pseudo_labeler"], pixels=pixels)
        notes["warmup"] = "no finished labels to train on: as fast as the pseudo labeler, on images of the pool's sizes"
    train("finetune", finetuned, target, of_labeled, True)
    rates["pseudo_labels"], labels, notes["pseudo_labels"] = labeling_rate(config, warmed_up, data.labeler, pool)
    evaluated = evaluation_canvas(config.augment, of_labeled, TEST_BATCH)
    rates["evaluation"] = replace(rates["pseudo_labels"], pixels=evaluated)
    return rates, labels, [f"{name}: {note}" for name, note in notes.items()]


def assumed_labels(config: Config, data: Survey) -> tuple[LabelCounts, str]:
    """Without a pseudo labeler: the maximum in the store, and as many used as labeled images have objects."""
    stored, used, origin = config.model.detections_per_image, COCO_LABELS, "an image of COCO train2017 has"
    if data.labeled is not None:
        used, origin = len(data.labeled.boxes) / len(data.labeled), "a labeled image has"
    each = LABEL_BYTES + (MASK_BYTES + 4 if config.model.masks else 0)
    note = f"labels: without a finished pseudo labeler, {stored} labels of {each} bytes per image are assumed in the "
    note += f"store, the maximum, and {used:.1f} above the threshold, as many objects as {origin}"
    return LabelCounts(stored, used, stored * each + ROW_BYTES + PATH_BYTES), note


def _assumptions(config: Config, devices: int, device: torch.device) -> list[str]:
    lengths = ", ".join(f"{length:g}x" for length in config.baseline_lengths)
    notes = [
        "time: of the stages' own loops including loading; grows with the pixels of a padded batch",
        "evaluation: detection on the validation images, at the rate of labeling; computing AP is left out",
        "loading: as fast as in this measurement; a disk slower than the page cache takes longer",
        f"baselines: from scratch, {lengths} as long as finetuning; the best on held-out images is compared",
        "disk: weights of each stage, the pseudo-label store, the pool's index; three checkpoints while a stage trains",
        "finished runs: not subtracted; a stage whose run is finished costs nothing again",
    ]
    if devices > 1:
        notes.append(f"devices: the time of one divided by {devices}, no communication cost assumed")
    if devices > 1 and device.type == "cpu":
        notes.append("devices: processes on one CPU share its cores, so they must be as many machines")
    return notes


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
