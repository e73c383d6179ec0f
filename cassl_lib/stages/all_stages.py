"""The three stages of CA-SSL (Fig. 2): each takes a Config and returns its finished Run.

    train_labeler   stage 1: labeled images without classes -> pseudo labeler          (Sec. 3.1, eq. 1)
    label           stage 2: the labeler on the unlabeled pool -> a pseudo-label store  (eqs. 2 and 3)
    warm_up         stage 3a: the target detector on pseudo labels only                  (eq. 4)
    finetune        stage 3b: the target detector on labeled images with classes        (eq. 5)

The same request finds the finished run, continues the unfinished one, or starts it. With `existing=True` a stage only
finds: it raises MissingRun, with the command that makes the run, instead of starting hours of work.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from cassl_lib import paths
from cassl_lib.config import PARTS, Config, ModelConfig, TrainConfig
from cassl_lib.data import datasets
from cassl_lib.data.augment import test_transform, training_transform
from cassl_lib.data.image_files import spread
from cassl_lib.data.loader import Order, Samples, batches, read_image
from cassl_lib.data.pool.build import Pool
from cassl_lib.data.pseudo_labeled import PseudoLabeled
from cassl_lib.errors import DataError, MissingRun, PseudoLabelError
from cassl_lib.evaluation.detector import evaluate_model
from cassl_lib.evaluation.labels import judge_labels, read_truth
from cassl_lib.files import file_fingerprint, write_atomically
from cassl_lib.labels.shards import AGNOSTIC, read_manifest
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.models.build import build_detector
from cassl_lib.models.weights.transfer import copy_parts
from cassl_lib.resolve import to_json, tuples
from cassl_lib.runs import Request, Run, open_run
from cassl_lib.stages.labeling import image_seconds, label_pool
from cassl_lib.training import engine

# Where finetuning starts: the warm-up (the paper), the labeler (Objects (G,A), Table 2), or the backbone's own weights.
STARTS = ("warmup", "labeler", "scratch")
TARGETS = {"instances": "objects", "panoptic": "entities"}  # what finetuning learns: the annotation it reads


def train_labeler(config: Config, *, existing: bool = False) -> Run:
    """Stage 1: train the pseudo labeler on the labeled images, every label an object without class."""
    labeled, val = datasets.labeled_set(config), datasets.validation_set(config)
    model, learns = warmed_up_model(config, labeled.classes), what_is_learned(config)
    plan = Training(model, config.labeler, labeled, "pseudo labeler", learns, classes=config.class_specific)
    data = {"labeled": labeled.fingerprint, "val": val.fingerprint}
    request = Request("labeler", plan.settings(config), data=data)
    return _run(request, config, "train_labeler", existing, lambda run: _train(run, plan, config, val))


def label(config: Config, *, labeler: Run | None = None, pool: Pool | None = None, existing: bool = False) -> Run:
    """Stage 2: label every image of the pool; low scores are kept, the threshold is applied when labels are read.

    Any number of processes, of other jobs and machines too, share the work of one request.

    Args:
        labeler: a run of stage 1 to label with, instead of what `config` means.
        pool: images to label, instead of the configuration's.
    """
    labeler = labeler or train_labeler(config, existing=existing or not config.make_inputs)
    pool = pool or datasets.pool(config)
    settings = label_settings(config)
    request = Request("labels", settings, inputs={"labeler": labeler.id}, data={"pool": pool.fingerprint})

    def together(run: Run) -> None:
        label_into(run.folder / "store", labeler, pool, config, log=run.log)

    work = {"together": together, "intact": _has_its_store}
    return _run(request, config, "label", existing, lambda run: _count_labels(run, config, pool), **work)


def _has_its_store(run: Run) -> bool:
    """Whether no shard of a label run is missing or cut short; such a one is made anew."""
    try:
        return bool(read_manifest(run.folder / "store"))
    except PseudoLabelError as error:
        print(f"{run.id}: {error}", file=sys.stderr, flush=True)
        return False


def label_settings(config: Config) -> dict:
    """What decides the labels beside labeler and pool, as JSON data."""
    test = {"test_size": config.augment.test_size, "longest": config.augment.longest}
    settings = {"keep": config.label.keep, "shard_size": config.label.shard_size, "test": test}
    # Both move scores a little: an image is padded to the largest of its batch.
    settings["batch_size"] = config.label.batch_size
    settings["precision"] = engine.precision_of(config.labeler, engine.device_of_process())
    return settings


def label_into(store: Path, labeler: Run, pool: Pool, config: Config, *, log=lambda entry: None) -> None:
    """Label a pool into a store with a finished run's detector; goes on where it, or another process, has stopped."""
    samples = Samples(pool, test_transform(config.augment), masks=False, classes=False, replace=False)
    request = {"settings": label_settings(config), "categories": labeler.result.get("categories") or AGNOSTIC}
    load = functools.partial(load_labeler, labeler, config)
    label_pool(load, samples, store, config=config, labeler=labeler.id, log=log, **request)


def warm_up(config: Config, *, labels: Run | None = None, existing: bool = False) -> Run:
    """Stage 3a: train the target detector from its initial weights on the pseudo labels above the threshold alone.

    Args:
        labels: a run of stage 2 to take the labels of, instead of what `config` names.
    """
    store, labels = labels_of(config, labels, existing=existing)
    val = datasets.validation_set(config)
    _check_labels(store, config, val)
    classes = [category["name"] for category in store.categories]
    model, learns = warmed_up_model(config, classes), what_is_learned(config)
    plan = Training(model, config.warmup, PseudoLabeled(store), "warm-up", learns, classes=config.class_specific)
    settings = plan.settings(config) | {"threshold": config.label.threshold}
    inputs, data = ({"labels": labels.id}, {}) if labels else ({}, {"labels": store.fingerprint})
    request = Request("warmup", settings, inputs=inputs, data=data | {"val": val.fingerprint})

    def train(run: Run) -> dict:
        _count_what_is_kept(store, config)
        if engine.rank_and_world()[0] == 0:
            store.verify()
        return _train(run, plan, config, val)

    return _run(request, config, "warm_up", existing, train)


def labels_of(config: Config, run: Run | None = None, *, existing: bool = False) -> tuple[PseudoLabelStore, Run | None]:
    """The pseudo labels that `config` (or a run of stage 2) means, above its threshold, and the run that made them.

    The run is None for a store that is not of this run store, such as another model's labels.
    """
    if run is None and config.labels is None:
        run = label(config, existing=existing or not config.make_inputs)
    folder = run.folder / "store" if run else Path(config.labels)
    beside = Run(folder.parent)
    if run is None and folder.name == "store" and beside.id.startswith("labels-") and beside.finished:
        run = beside
    return PseudoLabelStore(folder, threshold=config.label.threshold), run


def finetune(
    config: Config,
    *,
    start: str = "warmup",
    source: Run | None = None,
    parts: tuple[str, ...] = PARTS[:3],
    existing: bool = False,
) -> Run:
    """Stage 3b: train with classes on the labeled images, or (`config.target`) with things and stuff.

    Args:
        start: warmup (CA-SSL), labeler (Objects (G,A) of Table 2), or scratch: the baseline, which starts from the
            backbone's own weights and is given the steps of warm-up and finetuning together.
        source: a run to start from, instead of the one that `config` names.
        parts: which of backbone, neck, head, classifier are copied from the source (Table 9).
    """
    if start not in STARTS:
        raise ValueError(f"start={start!r} is not allowed; use one of: {', '.join(STARTS)}")
    annotation = TARGETS[config.target]
    labeled, val = datasets.labeled_set(config, annotation), datasets.validation_set(config, annotation)
    if labeled.classes != val.classes:
        raise DataError(f"{val.path}: its classes {val.classes} are not those of {labeled.path}, {labeled.classes}")
    if start != "scratch" and source is None:
        make = warm_up if start == "warmup" else train_labeler
        source = make(config, existing=existing or not config.make_inputs)
    training = config.finetune if start != "scratch" else replace(config.finetune, steps=baseline_steps(config))
    title = {"warmup": "finetuning", "labeler": "finetuning from the labeler", "scratch": "baseline"}[start]
    model = replace(config.model, num_classes=len(labeled.classes))
    starts = {"source": source, "parts": tuple(parts)}
    plan = Training(model, training, labeled, title, config.target, classes=True, **starts)
    settings = plan.settings(config) | ({"parts": list(parts)} if source else {})
    inputs = {start: source.id} if source else {}
    data = {"labeled": labeled.fingerprint, "val": val.fingerprint}
    request = Request("finetune", settings, inputs=inputs, data=data)
    return _run(request, config, f"finetune --start {start}", existing, lambda run: _train(run, plan, config, val))


def baseline_steps(config: Config) -> int:
    """Steps of warm-up and finetuning together: what an honest baseline is trained for."""
    pool_size = (
        0 if config.warmup.steps else len(PseudoLabelStore(config.labels) if config.labels else datasets.pool(config))
    )
    warmup = engine.number_of_steps(config.warmup, pool_size)
    labeled_size = 0 if config.finetune.steps else len(datasets.labeled_set(config, TARGETS[config.target]))
    return warmup + engine.number_of_steps(config.finetune, labeled_size)


def agnostic(config: Config) -> ModelConfig:
    """The detector of one class that labeler and warm-up train."""
    # UNSTATED: whether CA-SSL's entity labels overlap. The authors' entity inference leaves a pixel to one entity.
    alone = config.annotation == "entities" if config.overlap is None else not config.overlap
    return replace(config.model, num_classes=1, one_entity_per_pixel=alone and config.model.masks)


def warmed_up_model(config: Config, classes: list[str]) -> ModelConfig:
    """The detector of labeler and warm-up: of one class, or of all of them for Objects (P,S), Table 2."""
    return replace(agnostic(config), num_classes=len(classes)) if config.class_specific else agnostic(config)


def what_is_learned(config: Config) -> str:
    """By labeler and warm-up: objects or entities, with classes the annotation that has these."""
    with_classes = {annotation: target for target, annotation in TARGETS.items()}
    return with_classes[config.annotation] if config.class_specific else config.annotation


def _check_labels(store: PseudoLabelStore, config: Config, val) -> None:
    """Refuse, before any training, labels that this configuration cannot be trained on."""
    if config.model.masks and not store.has_masks:
        raise DataError(f"{store.folder} has labels without masks; train with masks=False, or label with masks")
    names = [category["name"] for category in store.categories]
    if config.class_specific and names != list(val.classes):
        raise DataError(f"{store.folder}: its classes {names} are not those of {val.path}, {list(val.classes)}")
    some = [paths.image(store.file_name(index)) for index in spread(len(store))]
    if not any(map(_readable, some)):
        raise DataError(
            f"{store.folder}: none of its images can be read, such as {some[0] if some else 'none at all'}; "
            "bring them back, or set CASSL_DATASETS to the folder that the names in the store start from"
        )


def _count_what_is_kept(store: PseudoLabelStore, config: Config) -> None:
    """Say on stderr what the threshold leaves to learn from.

    Nothing at all is refused, but at the smoke profile, whose labeler is trained for seconds and may find nothing.
    """
    found = store.statistics([store.threshold])
    labels, images = int(found["labels"][0]), int(found["images_with_labels"][0])
    if not labels and config.profile != "smoke":
        kept = found["score_edges"][1:][found["score_histogram"] > 0]
        best = f"the highest is below {kept[-1]:.2f}; take a lower threshold" if len(kept) else "it has no label at all"
        raise DataError(f"{store.folder}: no score is above the threshold {store.threshold}, {best}")
    if engine.rank_and_world()[0] == 0:
        counts = f"{labels:,} labels above {store.threshold} on {images:,} of {len(store):,} images"
        print(f"{store.folder}: {counts}", file=sys.stderr, flush=True)


def _readable(path: Path) -> bool:
    try:
        return read_image(path) is not None
    except OSError:
        return False


def judge(config: Config, store: PseudoLabelStore) -> dict:
    """Number of a store's labels above its threshold and, where their images have a hidden truth, their quality."""
    count = int(store.statistics([store.threshold])["labels"][0])
    truth = datasets.hidden_truth(config)
    if not truth or store.manifest["pool"] != datasets.pool(config).fingerprint:
        return {"threshold": store.threshold, "labels": count}
    judged = judge_labels(store, *read_truth(truth), complete=config.annotation == "objects")
    return {"threshold": store.threshold, "labels": count, **judged}


def load_model(run: Run) -> torch.nn.Module:
    """The trained detector of a finished run, in eval mode on this process's device."""
    model = build_detector(model_config(run))
    model.load_state_dict(load_file(run.weights))
    return model.to(engine.device_of_process()).eval()


def load_labeler(run: Run, config: Config) -> torch.nn.Module:
    """The detector of a finished run, finding all that stage 2 is to store."""
    model = load_model(run)
    if config.label.keep is not None:
        # The score is sqrt(cls * ctr): neither cls nor cls * ctr of a detection with this score is below its square.
        model.config = replace(model.config, score_threshold=config.label.keep**2)
    return model


def model_config(run: Run) -> ModelConfig:
    """The ModelConfig of a run; ImageNet weights are not fetched again."""
    settings = json.loads((run.folder / "request.json").read_text())["settings"]["model"]
    values = {key: tuples(value) for key, value in settings.items()}
    return ModelConfig(**values | {"pretrained": False})


@dataclass(frozen=True)
class Training:
    """What a training stage trains: a detector, for how long, on which source, starting where."""

    model: ModelConfig
    train: TrainConfig
    source_of_samples: object
    title: str
    learns: str  # objects, entities; instances or panoptic with classes
    classes: bool = False
    source: Run | None = None
    parts: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        return engine.number_of_steps(self.train, len(self.source_of_samples))

    def settings(self, config: Config) -> dict:
        """What decides the result, as JSON data. How often it is saved, or how many loaders it has, does not."""
        decisive = asdict(self.train) | {"steps": self.steps}
        for name in ("epochs", "workers", "checkpoint_every", "log_every"):
            del decisive[name]
        decisive["precision"] = engine.precision_of(self.train, engine.device_of_process())
        model = asdict(self.model)
        if isinstance(self.model.pretrained, str):  # what is in the file decides, not where it lies
            model["pretrained"] = file_fingerprint(self.model.pretrained)
        learns = {"learns": self.learns}
        if self.learns in ("entities", "panoptic"):
            learns["crowd"] = config.crowd
        if self.learns == "panoptic":
            learns["panoptic"] = asdict(config.panoptic)
        augment = asdict(config.augment)
        return json.loads(
            json.dumps({"model": model, "train": decisive, "augment": augment, "seed": config.seed, **learns})
        )


def _run(
    request: Request,
    config: Config,
    verb: str,
    existing: bool,
    work: Callable[[Run], dict],
    together: Callable[[Run], None] = lambda run: None,
    intact: Callable[[Run], bool] = lambda run: True,
) -> Run:
    """The run of a request: found finished, or made.

    Args:
        together: what any number of processes do at once before one of them, or those of one torchrun, `work`.
        intact: whether what they did is still there, of a finished run; else they do it again.
    """
    run = open_run(request)
    whole = run.finished and intact(run)
    if whole and (existing or engine.rank_and_world()[1] == 1):  # to work, several processes decide together
        return run
    if not run.finished:
        write_atomically(run.folder / "config.json", json.dumps(to_json(config), indent=1).encode())
    if existing:
        command = f"python -m cassl_lib run {verb} --config {shlex.quote(str(run.folder / 'config.json'))}"
        state = "damaged" if run.finished else "not there yet"
        missing = f"{run.id} is {state}; make it with\n    {command}\n(--devices N for N processes)"
        raise MissingRun(missing, run)
    if not whole:
        together(run)
    with _alone(run) as unfinished:
        if unfinished:
            result = work(run)
            if engine.rank_and_world()[0] == 0:
                run.finish(result)
        if dist.is_initialized():
            dist.barrier()
    return run


@contextlib.contextmanager
def _alone(run: Run):
    """Hold the run's lock in the first process; yields, in every process, whether the run still has to be made."""
    rank, world = engine.rank_and_world()
    with run.lock() if rank == 0 else contextlib.nullcontext():
        unfinished = [not run.finished]
        if world > 1:
            dist.broadcast_object_list(unfinished)
        yield unfinished[0]


def _train(run: Run, plan: Training, config: Config, val) -> dict:
    """Build, train, save and evaluate a detector; returns the result."""
    engine.seed_everything(config.seed)
    model = build_detector(plan.model)
    report = copy_parts(load_file(plan.source.weights), model, parts=plan.parts) if plan.source else None
    device = engine.device_of_process()
    model = model.to(device, memory_format=torch.channels_last)
    _announce(run, plan, report)
    transform = training_transform(config.augment)
    samples = Samples(plan.source_of_samples, transform, masks=plan.model.masks, classes=plan.classes, seed=config.seed)
    rank, world = engine.rank_and_world()

    def loader_from(step: int):
        order = Order(
            len(samples),
            batch_size=plan.train.batch_size,
            start=step,
            stop=plan.steps,
            seed=config.seed,
            rank=rank,
            world=world,
        )
        return batches(samples, order, workers=plan.train.workers)

    trained = engine.train(model, loader_from, config=plan.train, steps=plan.steps, run=run, title=plan.title)
    unreadable: list[str] = []
    how = {"augment": config.augment, "training": plan.train, "panoptic": config.panoptic, "folder": run.folder}
    metrics = evaluate_model(model, val, classes=plan.classes, unreadable=unreadable, **how)
    if rank == 0:
        engine.save_weights(model, run.weights, metadata={"run": run.id, "model": asdict(plan.model)})
    return {
        "metrics": metrics,
        "unreadable_validation": unreadable,
        "steps": plan.steps,
        "images": len(samples),
        "learning_rate": engine.scaled_rate(plan.train),
        "copied": str(report) if report else None,
        "classes": list(val.classes) if plan.classes else ["object"],
        "categories": _categories(val) if plan.classes else None,
        "left_out": getattr(plan.source_of_samples, "report", None) and str(plan.source_of_samples.report),
        **trained,
    }


def _categories(images) -> list[dict]:
    """Ids and names of a labeled set's classes, in the order of the labels."""
    names = zip(images.category_ids.tolist(), images.classes, strict=True)
    return [{"id": number, "name": name} for number, name in names]


def _announce(run: Run, plan: Training, report) -> None:
    """Say on stderr what is about to be trained, with the scaled learning rate and what was copied."""
    if engine.rank_and_world()[0]:
        return
    rate, batch = engine.scaled_rate(plan.train), plan.train.batch_size
    lines = [f"{run.id}: {plan.title}, {plan.steps} steps of {batch} images from {len(plan.source_of_samples)}"]
    lines.append(f"learning rate {rate:g} (setting {plan.train.learning_rate:g} for 16 images, batch {batch})")
    if report:
        lines.append(str(report))
    if left_out := str(getattr(plan.source_of_samples, "report", "")):
        lines.append(f"left out: {left_out}")
    print("\n".join(lines), file=sys.stderr, flush=True)


def _count_labels(run: Run, config: Config, pool: Pool) -> dict:
    """The result of a finished labeling; its labels are judged where the pool has a hidden truth."""
    if engine.rank_and_world()[0]:
        return {}
    labels = PseudoLabelStore(run.folder / "store", threshold=config.label.threshold)
    seconds = image_seconds(run.history)
    return {"metrics": judge(config, labels), "images": len(pool), "seconds": seconds, "unreadable": labels.unreadable}
