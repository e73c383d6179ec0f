"""Which files a configuration means: the embedded scenes, COCO's layout, or what the user named."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from cassl_lib import paper, paths
from cassl_lib.config import Config
from cassl_lib.data import scenes
from cassl_lib.data.coco import CocoImages, locate
from cassl_lib.data.entities import EntityImages
from cassl_lib.data.pool.build import build_pool
from cassl_lib.data.pool.formats import share_of
from cassl_lib.data.pool.index import REASONS, Pool
from cassl_lib.errors import DataError

COCO_UNLABELED = "coco/annotations/image_info_unlabeled2017.json"

# UNSTATED: what small, base and large consist of. The paper names the three sources and the sizes, 0.12, 0.66, 1.74 and
# 3.66 million; this is the one composition whose counts fit. (part of a pool below the data root, share taken)
SPLITS = {
    "tiny": ((COCO_UNLABELED, 1.0),),
    "small": ((COCO_UNLABELED, 1.0), ("places365/data_large", 0.3)),
    "base": (("openimages/train", 1.0),),
    "large": ((COCO_UNLABELED, 1.0), ("places365/data_large", 1.0), ("openimages/train", 1.0)),
}
OTHER_FORMS = {  # of the same images, as they are published; taken in this order where the first is not there
    "places365/data_large": (
        "places365/places365_train_standard.txt",
        "places365/train_large_places365standard.tar",
        "places365/data_256",
    ),
    "openimages/train": ("openimages/train-images-boxable-with-rotation.csv",),
}
EXPECTED = {
    COCO_UNLABELED: paper.SOURCES["coco_unlabeled"],
    "places365/data_large": paper.SOURCES["places365"],
    "openimages/train": paper.SOURCES["open_images"],
}


def scene_files(config: Config, units: tuple[str, ...]) -> scenes.SceneFiles:
    """The embedded scenes of this profile; `units` are written if they are not there yet."""
    return scenes.prepare(scene_folder(config), scenes.SceneSpec(**dict(config.scenes)), units)


def scene_folder(config: Config) -> Path:
    """Profiles that ask for the same scenes share them: the folder is named by what decides them."""
    spec = scenes.SceneSpec(**dict(config.scenes))
    return paths.scenes() / f"{spec.size}px-{hashlib.sha256(repr(spec).encode()).hexdigest()[:8]}"


def labeled_set(config: Config, annotation: str | None = None) -> CocoImages:
    """The labeled training images, with objects or entities; None takes the configuration's `annotation`."""
    return _coco(config, config.labeled, "train", annotation)


def validation_set(config: Config, annotation: str | None = None) -> CocoImages:
    """The images that results are reported on; an empty one is refused."""
    found = _coco(config, config.val, "val", annotation)
    if not len(found.boxes):
        raise DataError(f"{found.path}: no usable annotation, an evaluation would mean nothing")
    return found


def tuning_set(config: Config, annotation: str | None = None) -> CocoImages:
    """Scenes of their own for choosing settings: never reported on, never trained on."""
    return _coco(config, "scenes", "tune", annotation)


def heldout_set(config: Config, annotation: str | None = None) -> CocoImages | None:
    """Labeled images to choose the pseudo labels' threshold on; None where there are none.

    Raises:
        DataError: one of them is also trained on or reported on.
    """
    if config.heldout is None:
        return None
    if config.heldout == "scenes":
        return tuning_set(config, annotation)
    found = _coco(config, config.heldout, "tune", annotation)
    for name, used in (("labeled", labeled_set(config)), ("val", validation_set(config))):
        if shared := _image_files(found) & _image_files(used):
            raise DataError(f"heldout={config.heldout}: {len(shared)} of its images are in {name}, as {min(shared)}")
    return found


def _image_files(images: CocoImages) -> set[str]:
    folder = str(images.folder.resolve())
    return {f"{folder}/{name}" for name in images.names.tolist()}


def _coco(config: Config, spec: str, unit: str, annotation: str | None) -> CocoImages:
    entities = (annotation or config.annotation) == "entities"
    if spec == "scenes":
        files = scene_files(config, (unit,))
        path, folder = files.panoptic(unit)[0] if entities else files.instances(unit), files.images(unit)
    else:
        path, folder = locate(spec)
        path = sibling(path, "panoptic" if entities else "instances")
    stamps = tuple((each.stat().st_mtime_ns, each.stat().st_size) for each in (path, folder) if each.exists())
    return _read(path, folder, config.crowd if entities else None, stamps)


@functools.lru_cache(maxsize=4)
def _read(path: Path, folder: Path, crowd: str | None, stamps: tuple) -> CocoImages:
    """Kept, because a table asks for the same sets run by run, and COCO's take half a minute each to parse."""
    return CocoImages(path, folder) if crowd is None else EntityImages(path, folder, crowd=crowd)


def sibling(path: Path, kind: str) -> Path:
    """`path`, or the file of the other kind beside it: instances_train2017.json for panoptic_train2017.json."""
    other = {"panoptic": "instances", "instances": "panoptic"}[kind]
    if not path.name.startswith(other):
        return path
    found = path.with_name(kind + path.name.removeprefix(other))
    if not found.is_file():
        raise DataError(f"{found}: no such file, and {path.name} has no {kind}; put it beside, or name a {kind} JSON")
    return found


def pool(config: Config) -> Pool:
    """The unlabeled images of the configuration's split, or the user's own."""
    if config.unlabeled == "scenes":
        units = scenes.SPLITS[config.split]
        files = scene_files(config, units)
        parts = [f"{files.image_info(unit)}:{files.images(unit)}" for unit in units]
    elif config.unlabeled == "split":
        parts = paper_parts(config.split)
    elif Path(config.unlabeled).expanduser().exists():  # its name may have a comma
        parts = [config.unlabeled]
    else:
        parts = [part.strip() for part in config.unlabeled.split(",")]
    return build_pool(parts, paths.runs() / "pools")[0]


def split_counts(pool: Pool) -> list[dict]:
    """What was found of each part of a pool beside what its publishers count.

    Returns:
        A dict a part, the last for all of them: part, expected (None if nobody published it), listed, what was left out
        by reason (`pool_index.REASONS`), images, and `why` the number is another one.
    """
    rows = []
    for found in pool.parts:
        expected = _expected(found["part"])
        row = {"part": found["part"], "expected": expected, "listed": found["listed"]}
        rows.append(row | {reason: found[reason] for reason in REASONS} | {"images": found["images"]})
    if len(rows) > 1:
        expected = [row["expected"] for row in rows]
        total = {"part": "all", "expected": None if None in expected else sum(expected)}
        rows.append(total | {name: sum(row[name] for row in rows) for name in ("listed", *REASONS, "images")})
    return [row | {"why": _difference(row)} for row in rows]


def _expected(part: str) -> int | None:
    """Images of a published part, or of the share of it."""
    whole, share = share_of(part)
    for name, count in EXPECTED.items():
        if paths.file_and_folder(whole)[0] in (name, *OTHER_FORMS.get(name, ())):
            return int(count * share)
    return None


def _difference(row: dict) -> str:
    reasons = [f"{row[reason]:,} {reason}" for reason in REASONS if row[reason]]
    if row["expected"] is not None and row["listed"] != row["expected"]:
        gap = row["listed"] - row["expected"]
        reasons.insert(0, f"{abs(gap):,} {'more' if gap > 0 else 'fewer'} listed than published")
    return ", ".join(reasons)


def hidden_ground_truth(config: Config) -> list[Path]:
    """The instances JSONs of the pool, where there are any: for judging pseudo labels, never for training."""
    if config.unlabeled != "scenes":
        return []
    units = scenes.SPLITS[config.split]
    files = scene_files(config, units)
    return [files.ground_truth(unit) for unit in units]


def paper_parts(split: str) -> list[str]:
    """The parts of a split of the paper, as `build_pool` takes them."""
    root = paths.datasets()
    parts = []
    for name, share in SPLITS[split]:
        found = [each for each in (name, *OTHER_FORMS.get(name, ())) if (root / each).exists()]
        if not found:
            raise DataError(
                f"split={split!r} needs {root / name}, which is not there; put it there, set CASSL_DATASETS to the "
                "folder that holds coco/, places365/ and openimages/, or give your own images with unlabeled=FOLDER"
            )
        parts.append(str(root / found[0]) if share == 1 else f"{root / found[0]}@{share}")
    return parts
