"""Pictures of a finished chain: a few images with what each stage says of them.

`gather` takes them from the runs. What it returns is JSON without an image, so that the report draws the same pictures
from its results alone: a scene is drawn again from its number.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision.ops import masks_to_boxes

from cassl_lib import inspection, paths, plotting
from cassl_lib.config import Config
from cassl_lib.data import datasets, scenes
from cassl_lib.data.coco import CocoImages
from cassl_lib.data.loader import read_image
from cassl_lib.data.pseudo_labeled import PseudoLabeled
from cassl_lib.data.scenes.scene import Scene, SceneSpec
from cassl_lib.evaluation.rle import encode_masks
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.runs import Run
from cassl_lib.tables import summary

SHOWN = 6  # images in a row: the first ones, not chosen
ABOVE = 0.4  # the lowest score of a detection that is drawn


def gather(config: Config) -> dict:
    """What the stages of a finished chain say of the first images of its pool and of validation.

    Returns:
        `classes`, `runs`, and `pictures`: by name the `images`, file names as `paths.portable` writes them, `rows`, by
        name the instances of each image, and `scenes`, what the scenes are drawn by, None of other images.

    Raises:
        MissingRun: a run of the chain is missing.
    """
    runs, val = summary.chain(config), datasets.validation_set(config)
    stages = {"baseline": runs["baseline"], "CA-SSL": runs["cassl"]}
    pictures = {"stages": _of_pool(config, runs, stages), "detections": _of_validation(config, val, stages)}
    for picture in pictures.values():
        picture["rows"] = {name: [_packed(each) for each in row] for name, row in picture["rows"].items()}
    whole = {"classes": list(val.classes), "pictures": pictures, "runs": {name: run.id for name, run in runs.items()}}
    whole |= {"profile": config.profile, "split": config.split, "seed": config.seed}
    return whole | {"environment": runs["cassl"].result["environment"]}


def _of_pool(config: Config, runs: Mapping[str, Run], stages: Mapping[str, Run]) -> dict:
    """Images that nobody has labeled: every stage, and the truth of scenes, which no stage has seen."""
    labels = PseudoLabelStore(runs["labels"].folder / "store").at(config.label.threshold)
    kept, shown = PseudoLabeled(labels), range(min(SHOWN, len(labels)))
    own = [kept.annotations(index, masks=labels.has_masks) for index in shown]
    picture = {"images": [labels.file_name(index) for index in shown]}
    picture["scenes"] = dict(config.scenes) if config.unlabeled == "scenes" else None
    rows = {} if picture["scenes"] is None else {"truth": [_truth(_scene(picture, n)) for n in picture["images"]]}
    rows["labeler"] = [_without(found, "labels") for found in _found(runs["labeler"], picture)]
    rows["pseudo labels"] = [_without(each, "labels") for each in own]
    return picture | {"rows": rows | {name: _found(run, picture) for name, run in stages.items()}}


def _of_validation(config: Config, val: CocoImages, stages: Mapping[str, Run]) -> dict:
    shown = range(min(SHOWN, len(val)))
    picture = {"images": [paths.portable(val.image_path(index)) for index in shown]}
    picture["scenes"] = dict(config.scenes) if config.val == "scenes" else None
    rows = {"truth": [val.annotations(index, masks=config.model.masks) for index in shown]}
    return picture | {"rows": rows | {name: _found(run, picture) for name, run in stages.items()}}


def draw(gathered: Mapping) -> dict[str, plotting.Figure]:
    """The pictures of what `gather` returned, by name, and the three stages."""
    figures = {"pipeline": plotting.pipeline_figure()}
    for name, picture in gathered["pictures"].items():
        rows = {row: [_unpacked(each) for each in found] for row, found in picture["rows"].items()}
        figures[name] = plotting.side_by_side(_images(picture), rows, names=gathered["classes"])
    return figures


def save(figures: Mapping[str, plotting.Figure], folder: Path) -> list[Path]:
    """As PNGs of 128 colors: a quarter of the bytes, and people clone them."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=100)
        written.append(folder / f"{name}.png")
        Image.open(buffer).convert("RGB").quantize(128).save(written[-1], optimize=True)
    return written


def _found(run: Run, picture: Mapping) -> list[dict]:
    """What a run detects, without the scores: twelve boxes in an image of an inch leave no room for them."""
    return [_without(each, "scores") for each in inspection.detections(run, _images(picture), above=ABOVE)]


def _truth(scene: Scene) -> dict:
    masks = torch.from_numpy(np.array([thing.mask for thing in scene.things], bool).reshape(-1, *scene.stuff.shape))
    boxes = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])
    return {"boxes": boxes.numpy(), "masks": masks.numpy()}


def _images(picture: Mapping) -> list[torch.Tensor]:
    """(3, H, W) uint8 each; a scene is drawn again, any other image is read."""
    if picture["scenes"] is None:
        return [read_image(paths.image(name)) for name in picture["images"]]
    return [torch.from_numpy(_scene(picture, name).image).permute(2, 0, 1) for name in picture["images"]]


def _scene(picture: Mapping, name: str) -> Scene:
    return scenes.redraw(SceneSpec(**picture["scenes"]), int(Path(name).stem))


def _without(instances: Mapping, part: str) -> dict:
    return {name: value for name, value in instances.items() if name != part}


def _packed(instances: Mapping) -> dict:
    """Boxes to a tenth of a pixel, scores to a thousandth, masks as COCO's run lengths, labels as they are."""
    digits, packed = {"boxes": 1, "scores": 3, "labels": 0}, {}
    for name, places in digits.items():
        if instances.get(name) is not None:
            packed[name] = np.asarray(instances[name], float).round(places).tolist()
    if instances.get("masks") is not None:
        masks = torch.as_tensor(np.asarray(instances["masks"], np.uint8))
        packed["size"] = list(masks.shape[1:])
        packed["masks"] = [each["counts"].decode() for each in encode_masks(masks)]
    return packed


def _unpacked(packed: Mapping) -> dict:
    found = {name: np.array(packed[name]) for name in ("boxes", "scores") if name in packed}
    found |= {"labels": np.array(packed["labels"], int)} if "labels" in packed else {}
    if "masks" in packed:
        masks = [coco_mask.decode({"size": packed["size"], "counts": each}) for each in packed["masks"]]
        found["masks"] = np.array(masks, bool).reshape(-1, *packed["size"])
    return found
