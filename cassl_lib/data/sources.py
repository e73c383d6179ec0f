"""Which files a configuration means: the embedded scenes, COCO's layout, or what the user named."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cassl_lib import paths
from cassl_lib.config import Config
from cassl_lib.data import scenes
from cassl_lib.data.coco import CocoImages, DataError, locate
from cassl_lib.data.entities import EntityImages
from cassl_lib.data.unlabeled import Pool, build_pool

# UNSTATED: what small, base and large consist of. The paper names the three sources and the sizes, 0.12, 0.66, 1.74 and
# 3.66 million; this is the one composition whose counts fit. (folder or JSON below the data root, share taken)
SPLITS = {
    "tiny": (("coco/annotations/image_info_unlabeled2017.json", 1.0),),
    "small": (("coco/annotations/image_info_unlabeled2017.json", 1.0), ("places365/data_large", 0.3)),
    "base": (("openimages/train", 1.0),),
    "large": (
        ("coco/annotations/image_info_unlabeled2017.json", 1.0),
        ("places365/data_large", 1.0),
        ("openimages/train", 1.0),
    ),
}


def scene_files(config: Config, units: tuple[str, ...]) -> scenes.SceneFiles:
    """The embedded scenes of this profile; `units` are written if they are not there yet."""
    return scenes.prepare(scene_folder(config), scenes.SceneSpec(**dict(config.scenes)), units)


def scene_folder(config: Config) -> Path:
    """Profiles that ask for the same scenes share them: the folder is named by what decides them."""
    spec = scenes.SceneSpec(**dict(config.scenes))
    return paths.scenes() / f"{spec.size}px-{hashlib.sha256(repr(spec).encode()).hexdigest()[:8]}"


def labeled_set(config: Config, annotation: str | None = None) -> CocoImages:
    """The labelled training images, with objects or entities; None takes the configuration's `annotation`."""
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


def _coco(config: Config, spec: str, unit: str, annotation: str | None) -> CocoImages:
    entities = (annotation or config.annotation) == "entities"
    if spec == "scenes":
        files = scene_files(config, (unit,))
        path, folder = files.panoptic(unit)[0] if entities else files.instances(unit), files.images(unit)
    else:
        path, folder = locate(spec)
        path = sibling(path, "panoptic" if entities else "instances")
    return EntityImages(path, folder, crowd=config.crowd) if entities else CocoImages(path, folder)


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
    """The unlabelled images of the configuration's split, or the user's own."""
    if config.unlabeled == "scenes":
        units = scenes.SPLITS[config.split]
        files = scene_files(config, units)
        parts = [f"{files.image_info(unit)}:{files.images(unit)}" for unit in units]
    elif config.unlabeled == "split":
        parts = _paper_parts(config.split)
    else:
        parts = [part.strip() for part in config.unlabeled.split(",") if part.strip()]
    return build_pool(parts, paths.runs() / "pools")[0]


def hidden_truth(config: Config) -> list[Path]:
    """The instances JSONs of the pool, where there are any: for judging pseudo labels, never for training."""
    if config.unlabeled != "scenes":
        return []
    units = scenes.SPLITS[config.split]
    files = scene_files(config, units)
    return [files.truth(unit) for unit in units]


def _paper_parts(split: str) -> list[str]:
    root = paths.datasets()
    parts = []
    for name, share in SPLITS[split]:
        if not (root / name).exists():
            raise DataError(
                f"split={split!r} needs {root / name}, which is not there; put it there, set CASSL_DATASETS to the "
                "folder that holds coco/, places365/ and openimages/, or give your own images with unlabeled=FOLDER"
            )
        parts.append(str(root / name) if share == 1 else f"{root / name}@{share}")
    return parts
