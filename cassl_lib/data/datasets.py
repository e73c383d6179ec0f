"""The data sets of a configuration: the embedded scenes, the paper's data sets on disk, or the user's own files."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from cassl_lib import paper, paths
from cassl_lib.config import Config
from cassl_lib.data import layout, scenes
from cassl_lib.data.coco import CocoImages, locate
from cassl_lib.data.entities import EntityImages
from cassl_lib.data.image_contents import check_usable
from cassl_lib.data.panoptic import PanopticError
from cassl_lib.data.pool.build import build_pool
from cassl_lib.data.pool.formats import share_of
from cassl_lib.data.pool.index import REASONS, Pool
from cassl_lib.errors import DataError
from cassl_lib.resolve import COCO

COCO_UNLABELED = "coco/annotations/image_info_unlabeled2017.json"

# UNSTATED: what small, base and large consist of. The paper names the three sources and the sizes, 0.12, 0.66, 1.74 and
# 3.66 million; only this composition fits them. Pairs: part of a pool below the data root, share of its images
SPLITS = {
    "tiny": ((COCO_UNLABELED, 1.0),),
    "small": ((COCO_UNLABELED, 1.0), ("places365/data_large", 0.3)),
    "base": (("openimages/train", 1.0),),
    "large": ((COCO_UNLABELED, 1.0), ("places365/data_large", 1.0), ("openimages/train", 1.0)),
}
EXPECTED = {  # published number of images
    COCO_UNLABELED: paper.SOURCES["coco_unlabeled"],
    "places365/data_large": paper.SOURCES["places365"],
    "openimages/train": paper.SOURCES["open_images"],
}


def scene_files(config: Config, units: tuple[str, ...]) -> scenes.SceneFiles:
    """The embedded scenes of this profile; missing `units` are drawn first."""
    return scenes.prepare(scene_folder(config), scenes.SceneSpec(**dict(config.scenes)), units)


def scene_folder(config: Config) -> Path:
    """The folder of the scenes, named by their spec, so that profiles with the same spec share it."""
    spec = scenes.SceneSpec(**dict(config.scenes))
    return paths.scenes() / f"{spec.size}px-{hashlib.sha256(repr(spec).encode()).hexdigest()[:8]}"


def labeled_set(config: Config, annotation: str | None = None) -> CocoImages:
    """The labeled training images; where only `config.labeled_images` of them are used, the seed draws which.

    Args:
        annotation: "objects" or "entities", by default the configuration's.
    """
    return _coco(config, config.labeled, "train", annotation, drawn=(config.labeled_images, config.seed))


def validation_set(config: Config, annotation: str | None = None) -> CocoImages:
    """The images that results are reported on. Raises DataError if they have no annotations."""
    images = _coco(config, config.val, "val", annotation)
    if not len(images.boxes):
        raise DataError(f"{images.path}: no usable annotation, so nothing can be evaluated; give an annotated set")
    return images


def tuning_set(config: Config, annotation: str | None = None) -> CocoImages:
    """Separate scenes for choosing settings; no stage trains on them and no table reports on them."""
    return _coco(config, "scenes", "tune", annotation)


def heldout_set(config: Config, annotation: str | None = None) -> CocoImages | None:
    """Labeled images for choosing the pseudo-label threshold, or None if the configuration has none.

    Raises:
        DataError: some of them are also in the training or validation set.
    """
    if config.heldout is None:
        return None
    if config.heldout == "scenes":
        return tuning_set(config, annotation)
    images = _coco(config, config.heldout, "tune", annotation)
    for name, used in (("labeled", labeled_set(config)), ("val", validation_set(config))):
        if shared := _image_files(images) & _image_files(used):
            raise DataError(
                f"heldout={config.heldout}: {len(shared)} of its images are also in {name}, such as {min(shared)}; "
                "give images of their own"
            )
    return images


def _image_files(images: CocoImages) -> set[str]:
    folder = str(images.folder.resolve())
    return {f"{folder}/{name}" for name in images.names.tolist()}


def _coco(
    config: Config, spec: str, unit: str, annotation: str | None, *, drawn: tuple[int, int] = (0, 0)
) -> CocoImages:
    """The labeled set of a spec: "scenes" takes `unit` of the embedded scenes, anything else is for `locate`.

    Args:
        drawn: number of images that are used, 0 for all, and the seed that draws them.
    """
    entities = (annotation or config.annotation) == "entities"
    try:
        if spec == "scenes":
            files = scene_files(config, (unit,))
            path, folder = files.panoptic(unit)[0] if entities else files.instances(unit), files.images(unit)
        else:
            path, folder = locate(spec)
            path = sibling(path, "panoptic" if entities else "instances")
        stamps = tuple((each.stat().st_mtime_ns, each.stat().st_size) for each in (path, folder) if each.exists())
        crowd = config.crowd if entities else None
        return _read(path, folder, crowd, stamps, drawn if drawn[0] else None, own=spec != "scenes")
    except DataError as error:
        if words := _remedy(error, config, spec):
            raise DataError(words) from error
        raise


def _remedy(error: DataError, config: Config, spec: str) -> str | None:
    """What to do about an unreadable labeled set: download it, or train on objects; None where neither helps."""
    if spec in (own_labeled("labeled"), own_labeled("val")) and (words := layout.missing(needed(config))):
        return words
    if isinstance(error, PanopticError) and spec != "scenes":
        return f"{error}; without panoptic annotations use annotation=objects, and target=instances"
    return None


def own_labeled(name: str) -> str | None:
    """Where the paper's labeled set of a name, labeled or val, belongs; None for other names."""
    return str(paths.datasets() / COCO[name]) if name in COCO else None


def needed(config: Config) -> list[str]:
    """The parts of the paper's data sets that the stages of a configuration read, as keys of `layout.PARTS`."""
    annotations = {config.annotation, "entities" if config.target == "panoptic" else "objects"}
    names: list[str] = []
    for name, unit in (("labeled", "train2017"), ("val", "val2017")):
        if getattr(config, name) == own_labeled(name):
            names += layout.coco_names(unit, annotations)
    if config.unlabeled == "split" and not config.store:
        for part, _ in SPLITS[config.split]:
            names += ["coco/unlabeled2017", part] if part == COCO_UNLABELED else [part]
    return names


@functools.lru_cache(maxsize=8)
def _read(
    path: Path, folder: Path, crowd: str | None, stamps: tuple, drawn: tuple[int, int] | None, *, own: bool
) -> CocoImages:
    """Cached until a file changes: a table asks for the same sets in every run, and COCO's take 30 s each to parse."""
    if drawn:
        return _read(path, folder, crowd, stamps, None, own=own).draw(*drawn)
    images = CocoImages(path, folder) if crowd is None else EntityImages(path, folder, crowd=crowd)
    if own:
        check_usable(images, path)
    images.own = own
    return images


def area_side(config: Config) -> int | None:
    """The image side that small, medium and large are relative to, for `evaluate`; None for COCO's own ranges."""
    return scenes.SceneSpec(**dict(config.scenes)).size if config.val == "scenes" else None


def sibling(path: Path, kind: str) -> Path:
    """The annotation file of `kind` for the same images: instances_train2017.json for panoptic_train2017.json.

    Args:
        kind: "instances" or "panoptic"; a path that is not named like the other kind is returned unchanged.
    """
    other = {"panoptic": "instances", "instances": "panoptic"}[kind]
    if not path.name.startswith(other):
        return path
    beside = path.with_name(kind + path.name.removeprefix(other))
    if not beside.is_file():
        raise DataError(
            f"{beside}: no such file, and {path.name} has no {kind} annotations; put it there, or give a {kind} JSON"
            + (", or use annotation=objects and target=instances, which need none" if kind == "panoptic" else "")
        )
    return beside


def pool(config: Config) -> Pool:
    """The unlabeled images of the configuration: a split of scenes or of the paper, or the user's own."""
    if config.unlabeled == "scenes":
        units = scenes.SPLITS[config.split]
        files = scene_files(config, units)
        parts = [f"{files.image_info(unit)}:{files.images(unit)}" for unit in units]
    elif config.unlabeled == "split":
        parts = paper_parts(config.split)
    else:
        parts = _own_parts(config.unlabeled)
    return build_pool(parts, paths.runs() / "pools", own=config.unlabeled != "scenes")


def _own_parts(unlabeled: str) -> list[str]:
    """The parts of a pool, separated by commas; a part that exists is taken whole, as its name may have a comma."""
    file, folder = paths.file_and_folder(share_of(unlabeled)[0])
    if Path(file).expanduser().exists() and (folder is None or Path(folder).expanduser().is_dir()):
        return [unlabeled]
    return [part.strip() for part in unlabeled.split(",")]


def split_counts(pool: Pool) -> list[dict]:
    """The number of images in each part of a pool, beside the published number.

    Returns:
        One dict per part and, if there are several, one for all: `part`, `expected` (None if no number was published),
        `listed`, one count per reason for leaving out (`pool.index.REASONS`), `images`, and `why` the numbers differ.
    """
    rows = []
    for part in pool.parts:
        row = {"part": part["part"], "expected": _expected(part["part"]), "listed": part["listed"]}
        rows.append(row | {reason: part[reason] for reason in REASONS} | {"images": part["images"]})
    if len(rows) > 1:
        expected = [row["expected"] for row in rows]
        total = {"part": "all", "expected": None if None in expected else sum(expected)}
        rows.append(total | {name: sum(row[name] for row in rows) for name in ("listed", *REASONS, "images")})
    return [row | {"why": _difference(row)} for row in rows]


def _expected(part: str) -> int | None:
    """Published number of images of a part, times its share; None if unknown."""
    whole, share = share_of(part)
    for name, count in EXPECTED.items():
        if paths.file_and_folder(whole)[0] in (name, *layout.PARTS[name].other_places):
            return int(count * share)
    return None


def _difference(row: dict) -> str:
    """Why a row's number of images differs from the published one, or an empty string."""
    reasons = [f"{row[reason]:,} {reason}" for reason in REASONS if row[reason]]
    if row["expected"] is not None and row["listed"] != row["expected"]:
        gap = row["listed"] - row["expected"]
        reasons.insert(0, f"{abs(gap):,} {'more' if gap > 0 else 'fewer'} listed than published")
    return ", ".join(reasons)


def hidden_ground_truth(config: Config) -> list[Path]:
    """Instances JSONs of the pool's images, if it has any: to measure pseudo labels, never to train."""
    if config.unlabeled != "scenes":
        return []
    units = scenes.SPLITS[config.split]
    files = scene_files(config, units)
    return [files.ground_truth(unit) for unit in units]


def paper_parts(split: str) -> list[str]:
    """The parts of a split of the paper, for `build_pool`.

    Raises:
        DataError: one of its data sets is not below the data root.
    """
    root = paths.datasets()
    parts = []
    for name, share in SPLITS[split]:
        if words := layout.missing([name]):
            raise DataError(f"split={split!r}: {words}")
        existing = root / layout.PARTS[name].there
        parts.append(str(existing) if share == 1 else f"{existing}@{share}")
    return parts
