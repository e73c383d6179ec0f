"""The types of COCO's JSON files, checked by msgspec while it reads them. Fields that nothing reads are not checked."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta, Raw, Struct

Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Length = Annotated[int, Meta(ge=1, le=2**31 - 1)]  # pixels
FileName = Annotated[str, Meta(min_length=1, max_length=4096)]
Score = Annotated[float, Meta(ge=0, le=1)]
Box = tuple[float, float, float, float]  # x, y, width, height in pixels
Flag = bool | int
NO_SEGMENTATION = Raw(b"null")


class Rle(Struct, gc=False):
    """A mask as RLE: counts in column-major order, or COCO's compressed text."""

    size: tuple[Length, Length]  # height, width
    counts: list[Annotated[int, Meta(ge=0, le=2**62)]] | str


Segmentation = list[list[float]] | Rle | None  # polygons (x, y, x, y, ...), RLE, or nothing


class Image(Struct, gc=False):
    """An image of a labeled set."""

    id: Id
    file_name: FileName
    height: Length
    width: Length


class Category(Struct, gc=False):
    """A class of a labeled set."""

    id: Id
    name: str
    supercategory: Any = None


class Annotation(Struct, gc=False):
    """An object to train on. Its `segmentation` is parsed late, one at a time."""

    image_id: Id
    category_id: Id
    bbox: Box
    id: Id | None = None
    area: float | None = None
    iscrowd: Flag = 0
    segmentation: Raw = NO_SEGMENTATION


class InstancesFile(Struct):
    """COCO instances JSON, to train on."""

    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]


# ---- evaluation ----


class JudgedImage(Struct, gc=False):
    """An image that results are evaluated on; its size is needed for masks only."""

    id: Id
    file_name: FileName | None = None
    height: Length | None = None
    width: Length | None = None


class Object(Struct, gc=False):
    """An object that results are compared with."""

    id: Id
    image_id: Id
    category_id: Id
    bbox: Box | None = None
    area: float | None = None
    iscrowd: Flag = 0
    segmentation: Raw = NO_SEGMENTATION
    keypoints: list[float] | None = None
    num_keypoints: int | None = None


class GroundTruthFile(Struct):
    """COCO instances or keypoints JSON, to evaluate on."""

    images: list[JudgedImage]
    annotations: list[Object]
    categories: list[Category]


class Result(Struct, gc=False):
    """A detection in COCO's results format."""

    image_id: Id
    category_id: Id
    score: float
    bbox: Box | None = None
    segmentation: Raw = NO_SEGMENTATION
    keypoints: list[float] | None = None


# ---- labels of other models ----


class Label(Struct, gc=False):
    """An annotation that is imported as a pseudo label."""

    image_id: Id
    category_id: Id
    id: Id | None = None
    bbox: Box | None = None
    score: Score = 1.0
    area: float | None = None
    iscrowd: Flag = 0
    segmentation: Raw = NO_SEGMENTATION


class Detection(Label, gc=False, kw_only=True):
    """A result that is imported as a pseudo label: it has a score."""

    score: Score


class LabelFile(Struct):
    """COCO JSON whose annotations become pseudo labels; with results it only lists the images."""

    images: list[Image]
    annotations: list[Label] = []
    categories: list[dict] | None = None


# ---- panoptic ----


class Segment(TypedDict):
    """An entry of `segments_info`."""

    id: int
    category_id: Id
    iscrowd: NotRequired[Flag]
    area: NotRequired[int | float]
    bbox: NotRequired[list[int | float]]


class PanopticAnnotation(TypedDict):
    """The segments of one image."""

    image_id: Id
    file_name: FileName
    segments_info: list[Segment]


class PanopticCategory(Struct, gc=False):
    """A class of a panoptic file, thing or stuff."""

    id: Id
    name: str
    isthing: Flag


class PanopticFile(Struct):
    """COCO panoptic JSON: ground truth, or results, which need no images and no categories."""

    annotations: list[PanopticAnnotation]
    images: list[dict] | None = None
    categories: list[dict] | None = None
