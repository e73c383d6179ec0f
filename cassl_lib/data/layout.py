"""The paper's data on disk: the place of each part below the data root, and where it is from. See docs/data.md."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cassl_lib import paths

COCO, PLACES, OPEN_IMAGES = "cocodataset.org", "places2.csail.mit.edu", "storage.googleapis.com/openimages"


@dataclass(frozen=True)
class Part:
    """A file or folder of a published data set."""

    place: str  # below the data root
    file: str  # that holds it
    size: str  # of that file
    page: str  # official page of the data set
    other_places: tuple[str, ...] = ()  # other published forms of the same images, in order of preference

    @property
    def there(self) -> str | None:
        """The place where it is; None if it is missing."""
        return next((place for place in (self.place, *self.other_places) if (paths.datasets() / place).exists()), None)

    def __str__(self) -> str:
        if self.there:
            return f"there    {self.there}"
        return f"MISSING  {self.place}: unpack {self.download}"

    @property
    def download(self) -> str:
        return f"{self.file} ({self.size}, {self.page})"


def _coco(unit: str, images: str) -> dict[str, Part]:
    annotations = "coco/annotations"
    instances, panoptic = f"{annotations}/instances_{unit}.json", f"{annotations}/panoptic_{unit}"
    whole = "panoptic_annotations_trainval2017.zip"
    parts = [
        Part(f"coco/{unit}", f"{unit}.zip", images, COCO),
        Part(instances, "annotations_trainval2017.zip", "241 MB", COCO),
        Part(f"{panoptic}.json", whole, "821 MB", COCO),
        Part(panoptic, f"panoptic_{unit}.zip, which is inside {whole}", "821 MB", COCO, (f"coco/panoptic_{unit}",)),
    ]
    return {part.place: part for part in parts}


PARTS: dict[str, Part] = {
    **_coco("train2017", "18 GB"),
    **_coco("val2017", "1 GB"),
    "coco/unlabeled2017": Part("coco/unlabeled2017", "unlabeled2017.zip", "19 GB", COCO),
    "coco/annotations/image_info_unlabeled2017.json": Part(
        "coco/annotations/image_info_unlabeled2017.json", "image_info_unlabeled2017.zip", "4 MB", COCO
    ),
    "places365/data_large": Part(
        "places365/data_large",
        "train_large_places365standard.tar",
        "105 GB",
        PLACES,
        (
            "places365/places365_train_standard.txt",
            "places365/train_large_places365standard.tar",
            "places365/data_256",
        ),
    ),
    "openimages/train": Part(
        "openimages/train",
        "train_0.tar.gz to train_f.tar.gz",
        "513 GB",
        OPEN_IMAGES,
        ("openimages/train-images-boxable-with-rotation.csv",),
    ),
}
"""By place: every part of the paper's data sets that a configuration may need."""


def coco_names(unit: str, annotations: Iterable[str]) -> list[str]:
    """The parts of a labeled set.

    Args:
        unit: train2017 or val2017.
        annotations: objects, entities, or both.
    """
    names = [f"coco/{unit}", f"coco/annotations/instances_{unit}.json"]
    panoptic = f"coco/annotations/panoptic_{unit}"
    return [*names, f"{panoptic}.json", panoptic] if "entities" in annotations else names


def missing(names: Iterable[str]) -> str:
    """One line on the parts that are missing: the first one, what to put there, and how many others; "" if none is."""
    lacking = [PARTS[name] for name in names if not PARTS[name].there]
    if not lacking:
        return ""
    first, *others = lacking
    more = f" and {len(others)} more part{'s' if len(others) > 1 else ''}" if others else ""
    return (
        f"missing data: {paths.datasets() / first.place}{more}; unpack {first.download} there, or set CASSL_DATASETS "
        "to the folder that holds it (`cassl data` with the same options lists every part)"
    )
