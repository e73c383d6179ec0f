"""The shell's verbs around stores of pseudo labels: label a folder, look into a store, import and export."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from cassl_lib import paths
from cassl_lib.cli.pool import check_writable
from cassl_lib.config import Config
from cassl_lib.data.coco import locate
from cassl_lib.data.image_files import spread
from cassl_lib.errors import ConfigError, DataError
from cassl_lib.files import write_atomically
from cassl_lib.labels.coco import from_coco, to_coco
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.resolve import from_json
from cassl_lib.runs import Run, find_run

LABELERS = ("labeler", "warmup", "finetune")
PICTURES = (".png", ".jpg", ".pdf", ".svg")
SHOWN = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # thresholds


def add_verbs(verbs) -> None:
    """Add `label`, `labels` and `import-labels` to the parser's verbs."""
    label = verbs.add_parser("label", help="label your images with a finished run; any number of processes may join")
    label.set_defaults(act=_label)
    label.add_argument("--run", required=True, help="the detector: a finished run's name, its beginning, or its folder")
    label.add_argument("--images", required=True, metavar="PART", help="a folder, or any pool; several with commas")
    label.add_argument("--out", required=True, type=Path, metavar="STORE", help="folder of the store; goes on if begun")
    label.add_argument("--keep", type=float, help="lowest score that is stored (all that it finds)")
    label.add_argument("--batch-size", type=int, help="images (the run's setting)")
    label.add_argument("--shard-size", type=int, help="images (the run's setting)")
    label.add_argument("--workers", type=int, help="processes that read images (the run's setting)")

    labels = verbs.add_parser("labels", help="look into a store of pseudo labels, check it, export a part of it")
    labels.set_defaults(act=_labels)
    labels.add_argument("store", type=Path)
    labels.add_argument("--threshold", type=float, default=0.5, help="of what is drawn and exported")
    labels.add_argument("--images", default=":", metavar="A:B", help="which images are drawn and exported, from 0")
    labels.add_argument("--picture", type=Path, metavar="FILE.png", help="draw up to 12 of them with their labels")
    labels.add_argument("--export", type=Path, metavar="FILE.json", help="write the images as COCO instances JSON")

    imported = verbs.add_parser("import-labels", help="make a store of COCO JSON or of another model's results")
    imported.set_defaults(act=_import)
    imported.add_argument("coco", metavar="JSON[:FOLDER]", help="COCO instances or image_info JSON, with its images")
    imported.add_argument("--out", required=True, type=Path, metavar="STORE")
    imported.add_argument("--results", type=Path, help="COCO results JSON, instead of the annotations")
    imported.add_argument("--labeler", default="imported", help="a name for what made the labels")


def _label(parsed: argparse.Namespace) -> None:
    from cassl_lib.data.datasets import pool
    from cassl_lib.stages import all_stages as stages
    from cassl_lib.training import engine

    run = find_run(parsed.run)
    if run.result["stage"] not in LABELERS:
        raise ConfigError(f"--run {parsed.run} is a run of the stage {run.result['stage']}; give a trained detector's")
    config = replace(config_of(run), unlabeled=parsed.images)
    config = replace(config, label=_changed(config.label, parsed, ("keep", "batch_size", "shard_size")))
    config = replace(config, labeler=_changed(config.labeler, parsed, ("workers",)))
    _check_store(parsed.out)
    with engine.processes():
        stages.label_into(parsed.out, run, pool(config), config)
        if engine.rank_and_world()[0]:
            return
    store = PseudoLabelStore(parsed.out)
    _describe(store)
    for name in store.unreadable[:20]:
        print(f"could not be read: {name}", file=sys.stderr)
    print(f"warm up on it with: -p labels {parsed.out.resolve()} (--labels in the shell)")


def _check_store(folder: Path) -> None:
    """Refuse a folder that holds something else."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file; give a folder for the store")
    if folder.is_dir() and not (folder / "request.json").exists():
        if foreign := sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")):
            raise ConfigError(f"--out {folder} is no store and not empty ({foreign[0]}); give another folder")


def config_of(run: Run) -> Config:
    """The settings that a run was made with."""
    try:
        return from_json(json.loads((run.folder / "config.json").read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{run.folder / 'config.json'} cannot be read ({error!r}); the run is not whole") from error


def _changed(section, parsed: argparse.Namespace, names: tuple[str, ...]):
    given = {name: getattr(parsed, name) for name in names if getattr(parsed, name) is not None}
    # The masks of a shard are one column of at most 2 GB: 100 of them an image, of up to 400 bytes.
    allowed = {"keep": (0, 1), "workers": (0, 1000), "batch_size": (1, 65_536), "shard_size": (1, 50_000)}
    for name, value in given.items():
        low, high = allowed[name]
        if not low <= value <= high:
            raise ConfigError(f"--{name.replace('_', '-')} {value} is out of range; use {low} to {high:,}")
    return replace(section, **given)


def _labels(parsed: argparse.Namespace) -> None:
    if not 0 <= parsed.threshold <= 1:
        raise ConfigError(f"--threshold {parsed.threshold} is out of range; use 0 to 1")
    if parsed.picture and parsed.picture.suffix.lower() not in PICTURES:
        raise ConfigError(f"--picture {parsed.picture} is no picture; end its name in one of {' '.join(PICTURES)}")
    for file in filter(None, (parsed.picture, parsed.export)):
        check_writable(file)
    store = PseudoLabelStore(parsed.store, threshold=parsed.threshold)
    chosen = _slice(parsed.images, len(store))
    store.verify()
    _describe(store)
    if parsed.export:
        write_atomically(parsed.export, json.dumps(to_coco(store, chosen)).encode())
        print(parsed.export)
    if parsed.picture:
        print(_draw(store, chosen, parsed.picture))


def _slice(text: str, images: int) -> range:
    first, colon, last = text.partition(":")
    try:
        chosen = range(images)[int(first or 0) : int(last or images)] if colon else None
    except ValueError:
        chosen = None
    if chosen is None:
        raise ConfigError(f"--images {text!r} is not A:B; give the first image and the one after the last, as 0:100")
    if not chosen and text != ":":
        raise ConfigError(f"--images {text!r}: none of the {images:,} images is there; give the first and one behind")
    return chosen


def _describe(store: PseudoLabelStore) -> None:
    counted = store.statistics(SHOWN)
    size = sum(entry["bytes"] for entry in store.manifest["shards"])
    print(f"{store.folder}: {len(store):,} images, {len(store.unreadable):,} more could not be read")
    print(f"{len(store.manifest['shards'])} shards, {size / 1e6:,.1f} MB, by {store.labeler}")
    print(f"{'above':>8}{'labels':>14}{'an image':>10}{'images with any':>17}")
    rows = (counted[name] for name in ("thresholds", "labels", "labels_per_image", "images_with_labels"))
    for threshold, labels, mean, images in zip(*rows, strict=True):
        above = f"{threshold:.2f}" if threshold else "all"
        print(f"{above:>8}{labels:14,}{mean:10.2f}{images:17,}")


def _draw(store: PseudoLabelStore, chosen: range, file: Path) -> Path:
    """At most 12 of the images, at even distances, with their labels above the store's threshold."""
    from cassl_lib import plotting
    from cassl_lib.data.loader import read_image
    from cassl_lib.data.pseudo_labeled import PseudoLabeled

    source, images, found = PseudoLabeled(store), [], []
    for index in [chosen[place] for place in spread(len(chosen), 12)]:
        try:
            images.append(read_image(source.image_path(index)))
        except OSError as error:
            raise DataError(f"{source.image_path(index)}: {error}") from error
        found.append(source.annotations(index, masks=store.has_masks))
    plotting.show_instances(images, found).savefig(file, dpi=110, bbox_inches="tight")
    return file


def _import(parsed: argparse.Namespace) -> None:
    if parsed.out.is_dir() and any(parsed.out.iterdir()):
        raise ConfigError(f"--out {parsed.out} is not empty; give another folder")
    path, images = locate(parsed.coco)
    made = from_coco(path, parsed.out, results=parsed.results, images=images, labeler=parsed.labeler)
    some = [paths.image(made.file_name(index)) for index in spread(len(made))]
    if not any(file.is_file() for file in some):
        shutil.rmtree(parsed.out)
        example = some[0] if some else "none at all"
        raise DataError(f"{path}: its images are not in {images}, such as {example}; give them as {path}:FOLDER")
    _describe(made)
