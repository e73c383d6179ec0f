"""The figures of the report that show images: the paper's Figs. 1 to 3, and detections on the same images.

They are drawn from a recorded result, which `gather` makes from the runs. It holds no image: a scene is redrawn from
its number. Without a recorded result Fig. 2 shows the ground truth of the embedded scenes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torchvision.ops import masks_to_boxes

from cassl_lib import paths, plotting
from cassl_lib.data import scenes
from cassl_lib.data.loader import read_image
from cassl_lib.data.scenes.kinds import NAMED, STUFF
from cassl_lib.data.scenes.scene import UNITS, Scene, SceneSpec
from cassl_lib.profiles import DEMO_SCENES
from cassl_lib.report.blocks import NOTHING, Block, Picture
from cassl_lib.tables import results

MIN_SCORE = 0.4  # of a detection that is shown
CLASSES = tuple(kind.name for kind in NAMED)
COMPARED = ("stages", "detections")  # pictures of a recorded result that are drawn as rows
FIGURE3 = DEMO_SCENES | dict(size=256, objects=(1, 1), odd_shapes=0.0, clutter=0.0)  # the scene of Fig. 3
RULE = f"The images are the first ones of their set, detections those with a score above {MIN_SCORE}."


# ---- sections of the report ----


def recorded() -> list[Path]:
    """The recorded detections that the report shows: those of the demo."""
    return sorted(results.RESULTS.glob("pictures_demo_large_seed0.json"))


def joint_training() -> Sequence[Block]:
    """Joint training and the three stages (Fig. 1 of the paper)."""
    alt = "Diagram: teacher and student on one mixed loss, beside the three stages of CA-SSL one after another."
    caption = (
        "Our drawing of the paper's Fig. 1. Joint semi-supervised training mixes labeled and unlabeled images in one "
        "loss; CA-SSL gives each stage one kind of data and a loss of its own."
    )
    return [Picture("../figures/joint_training.png", alt, caption)]


def pipeline() -> Sequence[Block]:
    """The three stages on images (Fig. 2 of the paper)."""
    alt = "The three stages with images: pseudo labeler training, pseudo labels, warm-up, finetuning, detections."
    files = recorded()
    if files:
        result = results.read(files[0])
        origin = f"The images are the first ones of profile {result['profile']}, seed {result['seed']}, with a label."
    else:
        origin = "No run is recorded yet: the labels and detections shown are ground truth."
    caption = f"The three stages of CA-SSL (Sec. 3.1, Fig. 2): the images and labels each one is trained on. {origin}"
    return [Picture("../figures/pipeline.png", alt, caption)]


def entities() -> Sequence[Block]:
    """An image with one object and its entities (Fig. 3 of the paper)."""
    alt = "The same image twice: with one annotated object, and with five masks of things and stuff."
    caption = (
        "Objects and entities (Sec. 3.2, Fig. 3): with a single annotated object there is little to learn from; as "
        "entities, every thing and every region of stuff is a mask. Drawn scene, ground truth."
    )
    return [Picture("../figures/entities.png", alt, caption)]


def comparisons() -> Sequence[Block]:
    """Detections of each stage on the same images, with what CA-SSL changed over the baseline."""
    blocks: list[Block] = []
    marks = "Marks in the last row: correct only in CA-SSL (+), correct only in the baseline (−), false positive (×)."
    sets = {"stages": "Unlabeled images", "detections": "Validation images"}
    for file in recorded():
        result = results.read(file)
        scale = f"profile {result['profile']}, pool {result['split']}, seed {result['seed']}"
        for name, words in sets.items():
            picture = result["pictures"][name]
            rows = ", ".join(picture["rows"])
            hidden = " No stage sees the ground truth of unlabeled images." if name == "stages" else ""
            caption = f"{words}, {scale}. Rows: {rows}. {RULE} {marks}{hidden}"
            blocks.append(Picture(f"../figures/{name}.png", f"{words} in rows: {rows}.", caption))
    return blocks or NOTHING


# ---- figures ----


def draw(gathered: Mapping) -> dict[str, plotting.Figure]:
    """The figures of a result that `gather` made, by name: the same images in rows."""
    return {
        name: plotting.compare_detections(images_of(picture), rows_of(picture), names=gathered["classes"])
        for name, picture in gathered["pictures"].items()
        if name in COMPARED
    }


def paper_figures() -> dict[str, plotting.Figure]:
    """Figs. 1 to 3 of the paper, by file name."""
    files = recorded()
    return {
        "joint_training": plotting.joint_training_figure(),
        "pipeline": pipeline_figure(results.read(files[0]) if files else None),
        "entities": entities_figure(),
    }


def pipeline_figure(gathered: Mapping | None = None) -> plotting.Figure:
    """The stages on the first image with instances of each set; without a result on ground truth of the scenes."""
    if gathered is None:
        labeled, unlabeled, shown = (_scene_example(unit) for unit in ("train", "pool_0", "val"))
        return plotting.stages_figure(labeled=labeled, pseudo_labeled=unlabeled, result=shown, names=CLASSES)
    pictures = gathered["pictures"]
    labeled = _first(pictures["labeled"], "ground truth")
    pseudo_labeled, shown = _first(pictures["stages"], "pseudo labels"), _first(pictures["detections"], "CA-SSL")
    names = gathered["classes"]
    return plotting.stages_figure(labeled=labeled, pseudo_labeled=pseudo_labeled, result=shown, names=names)


def _first(picture: Mapping, row: str) -> plotting.Example:
    """The first image with an instance in that row, or the first one."""
    instances = rows_of(picture)[row]
    index = next((n for n, each in enumerate(instances) if len(each["boxes"])), 0)
    return plotting.Example(images_of(picture)[index].numpy(), instances[index])


def _scene_example(unit: str) -> plotting.Example:
    """The first scene of a unit with its annotated objects."""
    scene = scenes.redraw(SceneSpec(**DEMO_SCENES), _scene_id(unit, 0))
    instances = ground_truth(scene, CLASSES)
    named = instances["labels"] >= 0
    return plotting.Example(scene.image.transpose(2, 0, 1), {part: all_[named] for part, all_ in instances.items()})


def entities_figure() -> plotting.Figure:
    """The first scene with one thing, inside the image, and four kinds of stuff: its objects and its entities."""
    spec, index = SceneSpec(**FIGURE3), 0
    while not _has_one_thing(scene := scenes.redraw(spec, _scene_id("train", index))):
        index += 1
    thing = scene.things[0].mask
    stuff = [place for place in range(len(STUFF)) if ((scene.stuff == place) & ~thing).any()]
    names = [*CLASSES, *(name for _, name in STUFF)]
    objects = {"masks": thing[None], "labels": [CLASSES.index(scene.things[0].kind.name)]}
    masks = np.stack([thing, *((scene.stuff == place) & ~thing for place in stuff)])
    segments = {"masks": masks, "labels": [*objects["labels"], *(len(CLASSES) + place for place in stuff)]}
    return plotting.entities_figure(scene.image.transpose(2, 0, 1), objects, segments, names=names)


def _has_one_thing(scene: Scene) -> bool:
    things = [each for each in scene.things if each.kind.named]
    if len(things) != 1 or len(scene.things) != 1 or len(np.unique(scene.stuff[~things[0].mask])) < 4:
        return False
    mask = things[0].mask
    return not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def demo_picture(gathered: Mapping, numbers: Mapping) -> plotting.Figure:
    """Validation images with what CA-SSL changed, above the box APs of this seed.

    Args:
        gathered: as `gather` returns it.
        numbers: as `summary.numbers_of` returns them.
    """
    picture = gathered["pictures"]["detections"]
    lengths = sorted(numbers["baseline_by_steps"].items(), key=lambda item: int(item[0]))
    chosen = str(numbers["baseline_steps"])
    aps = {f"baseline, {int(steps):,} steps{' (chosen)' * (steps == chosen)}": ap for steps, ap in lengths}
    aps |= {"Objects (G,A)": numbers["objects_ga_ap"], "CA-SSL": numbers["cassl_ap"]}
    return plotting.demo_picture(
        images_of(picture),
        rows_of(picture),
        names=gathered["classes"],
        aps={name: 100 * ap for name, ap in aps.items() if ap is not None},
        title=f"box AP on all validation images, profile {gathered['profile']}, seed {gathered['seed']} "
        "(baseline length chosen on held-out images)",
    )


def length_figure(collected: Mapping) -> plotting.Figure | None:
    """AP of the baseline over its length, with (G,A) and CA-SSL, from the recorded Table 2; None without both."""
    column, steps = "finetuned det AP", collected["config"]["finetune"]["steps"]
    curves = {}
    for row in ("ImageNet", "Objects (G,A)", "Objects (P,A)"):
        measured = collected.get("lengths", {}).get(f"{row}, {column}", {}).get("steps")
        if measured is None:  # one length: the profile's own
            measured = {str(steps): collected["rows"].get(row, {}).get(column, {})}
        values = {int(name): _percent(cell) for name, cell in measured.items() if name.isdecimal()}
        curves[row] = {length: each for length, each in values.items() if each}
    baseline, *others = curves.values()
    if not baseline or not all(others):
        return None
    labeling, warming = (collected["config"][stage]["steps"] for stage in ("pseudo_labeler", "warmup"))
    names = ("Objects (G,A)", "CA-SSL (P,A)")
    before = (f"{labeling:,} without classes", f"{warming:,} of warm-up")
    return plotting.length_chart(
        baseline,
        dict(zip(names, others, strict=True)),
        before=dict(zip(names, before, strict=True)),
    )


def _percent(cell: Mapping) -> list[float]:
    return [100 * value for value in cell.values() if value is not None]


def save(figures: Mapping[str, plotting.Figure], folder: Path) -> list[Path]:
    """Write figures as palette PNGs, which keep the repository small."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.png" for name in figures]
    for file, figure in zip(files, figures.values(), strict=True):
        plotting.save_png(figure, file)
    return files


# ---- images and instances ----


def images_of(picture: Mapping) -> list[torch.Tensor]:
    """The images of a picture, each (3, H, W) uint8. Scenes are redrawn, other images are read."""
    if picture["scenes"] is None:
        return [read_image(paths.image(name)) for name in picture["images"]]
    return [torch.from_numpy(scene_of(picture, name).image).permute(2, 0, 1) for name in picture["images"]]


def scene_of(picture: Mapping, name: str) -> Scene:
    """The scene of a file name."""
    return scenes.redraw(SceneSpec(**picture["scenes"]), int(Path(name).stem))


def _scene_id(unit: str, index: int) -> int:
    return (UNITS.index(unit) + 1) * 1_000_000 + index


def ground_truth(scene: Scene, classes: Sequence[str]) -> dict:
    """All things of a scene: masks, boxes, and labels, -1 for unnamed kinds."""
    masks = torch.from_numpy(np.array([thing.mask for thing in scene.things], bool).reshape(-1, *scene.stuff.shape))
    boxes = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])  # ends behind the last pixel, as in COCO
    names = [thing.kind.name for thing in scene.things]
    labels = np.array([classes.index(name) if name in classes else -1 for name in names], int)
    return {"boxes": boxes.numpy(), "masks": masks.numpy(), "labels": labels}


def rows_of(picture: Mapping) -> dict[str, list[dict]]:
    """By name of the row, the instances of each image, as plotting takes them."""
    return {name: list(map(_unpacked, images)) for name, images in picture["rows"].items()}


def _unpacked(packed: Mapping) -> dict:
    instances = {name: np.array(packed[name]) for name in ("boxes", "scores") if name in packed}
    instances |= {"labels": np.array(packed["labels"], int)} if "labels" in packed else {}
    if "masks" in packed:
        masks = [coco_mask.decode({"size": packed["size"], "counts": each}) for each in packed["masks"]]
        instances["masks"] = np.array(masks, bool).reshape(-1, *packed["size"])
    return instances
