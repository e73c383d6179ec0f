"""The verbs `label`, `labels` and `import-labels`: label your images, inspect a store, import and export."""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from cassl_lib import paths
from cassl_lib.cli.pool import check_writable
from cassl_lib.config import THRESHOLD
from cassl_lib.data.coco import locate
from cassl_lib.data.image_files import spread
from cassl_lib.errors import ConfigError, DataError
from cassl_lib.files import write_atomically
from cassl_lib.labels.coco import from_coco, to_coco
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.labels.summary import formatted_counts, threshold_counts
from cassl_lib.runs import find_run

PICTURES = (".png", ".jpg", ".pdf", ".svg")


def add_verbs(verbs) -> None:
    """Add `label`, `labels` and `import-labels` to the parser's verbs."""
    label = verbs.add_parser("label", help="label your images with a finished run; several processes share the work")
    label.set_defaults(act=_label)
    label.add_argument("--run", required=True, help="the detector: a finished run (name, unique prefix, or folder)")
    label.add_argument(
        "--images",
        required=True,
        metavar="PART",
        help="a folder of images, or any other pool; several joined by commas",
    )
    label.add_argument(
        "--out", required=True, type=Path, metavar="STORE", help="folder of the store; resumed if it exists"
    )
    label.add_argument("--keep", type=float, help="lowest stored score (default: every detection)")
    label.add_argument("--batch-size", type=int, help="images (the run's setting)")
    label.add_argument("--shard-size", type=int, help="images (the run's setting)")
    label.add_argument("--workers", type=int, help="processes that read images (the run's setting)")

    labels = verbs.add_parser("labels", help="inspect a pseudo-label store, verify it, export part of it")
    labels.set_defaults(act=_labels)
    labels.add_argument("store", type=Path, help="folder of the store")
    labels.add_argument("--threshold", type=float, default=THRESHOLD, help="of the labels that are drawn and exported")
    labels.add_argument("--images", default=":", metavar="START:STOP", help="which images are drawn and exported")
    labels.add_argument(
        "--picture", type=Path, metavar="FILE.png", help="draw up to 12 of these images with their labels"
    )
    labels.add_argument("--export", type=Path, metavar="FILE.json", help="write these images as COCO instances JSON")

    imported = verbs.add_parser("import-labels", help="make a store from a COCO JSON or from another model's results")
    imported.set_defaults(act=_import)
    imported.add_argument("coco", metavar="JSON[:FOLDER]", help="COCO instances or image_info JSON, with its images")
    imported.add_argument(
        "--out", required=True, type=Path, metavar="STORE", help="folder of the new store; resumed if it exists"
    )
    imported.add_argument("--results", type=Path, help="COCO results JSON, instead of the annotations")
    imported.add_argument("--labeler", default="imported", help="a name for the model that made the labels")


def _label(parsed: argparse.Namespace) -> None:
    from cassl_lib.data.datasets import pool
    from cassl_lib.stages.models import check_trained
    from cassl_lib.stages.pseudo_labels import label_into
    from cassl_lib.training.distributed import processes, rank_and_world

    run = find_run(parsed.run)
    check_trained(run)
    config = replace(run.config, unlabeled=parsed.images)
    label = _changed(config.pseudo_labels, parsed, ("keep", "batch_size", "shard_size"))
    config = replace(config, pseudo_labels=label, pseudo_labeler=_changed(config.pseudo_labeler, parsed, ("workers",)))
    _check_out(parsed.out)
    with processes():
        label_into(parsed.out, run, pool(config), config)
        if rank_and_world()[0]:
            return
    store = PseudoLabelStore(parsed.out)
    _describe(store)
    for name in store.unreadable[:20]:
        print(f"unreadable: {name}", file=sys.stderr)
    print(f"warm up on it with: -p store {parsed.out.resolve()} (--store in the shell)")


def _check_out(folder: Path) -> None:
    """Raise ConfigError if the folder holds something other than a store."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file; give a folder for the store")
    if folder.is_dir() and not (folder / "request.json").exists():
        if foreign := sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")):
            raise ConfigError(f"--out {folder} is not a store and not empty ({foreign[0]}); give another folder")


def _changed(section, parsed: argparse.Namespace, names: tuple[str, ...]):
    """The section with the given options set."""
    given = {name: getattr(parsed, name) for name in names if getattr(parsed, name) is not None}
    # The masks of a shard are one column of at most 2 GB: 100 per image, of up to 400 bytes.
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
        raise ConfigError(f"--picture {parsed.picture} is not a picture file; use one of {' '.join(PICTURES)}")
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
        raise ConfigError(f"--images {text!r} is not START:STOP, e.g. 0:100")
    if not chosen and text != ":":
        raise ConfigError(f"--images {text!r} selects no image (the store has {images:,}); use START:STOP, e.g. 0:100")
    return chosen


def _describe(store: PseudoLabelStore) -> None:
    size = sum(entry["bytes"] for entry in store.manifest["shards"])
    print(f"{store.folder}: {len(store):,} images, {len(store.unreadable):,} more were unreadable")
    print(f"{len(store.manifest['shards'])} shards, {size / 1e6:,.1f} MB, by {store.labeler}")
    for cells in formatted_counts(threshold_counts(store)):
        print("{:>12}{:>14}{:>12}{:>20}".format(*cells))


def _draw(store: PseudoLabelStore, chosen: range, file: Path) -> Path:
    """Up to 12 evenly spaced images with their labels above the store's threshold."""
    from cassl_lib import plotting
    from cassl_lib.data.loader import read_image
    from cassl_lib.data.pseudo_labeled import PseudoLabeled

    source, images, instances = PseudoLabeled(store), [], []
    for index in [chosen[place] for place in spread(len(chosen), 12)]:
        try:
            images.append(read_image(source.image_path(index)))
        except OSError as error:
            raise DataError(f"{source.image_path(index)}: {error}. Restore the image") from error
        instances.append(source.annotations(index, masks=store.has_masks))
    picture = io.BytesIO()
    figure = plotting.show_instances(images, instances)
    figure.savefig(picture, format=file.suffix[1:], dpi=110, bbox_inches="tight")
    write_atomically(file, picture.getvalue())
    return file


def _import(parsed: argparse.Namespace) -> None:
    _check_out(parsed.out)
    path, images = locate(parsed.coco)
    store = from_coco(path, parsed.out, results=parsed.results, images=images, labeler=parsed.labeler)
    examples = [paths.image(store.file_name(index)) for index in spread(len(store))]
    if not any(file.is_file() for file in examples):
        shutil.rmtree(parsed.out)
        example = examples[0] if examples else "none"
        raise DataError(f"{path}: its images are not in {images}, such as {example}; give them as {path}:FOLDER")
    _describe(store)
