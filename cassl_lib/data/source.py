"""The contract of an image source: where training, evaluation and labeling get images and their instances from.

`Samples` (data/loader.py) turns a source into training samples. Implementations: `CocoImages` and `EntityImages`
(labeled sets), `PseudoLabeled` (a store of pseudo labels), `Pool` (unlabeled images) and, for measuring speed,
`SyntheticPhotos` and `PoolSample` in tools/plan. Adding one takes one line in tests/data/test_source_contract.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np

from cassl_lib.errors import LeftOut


class Annotations(TypedDict):
    """The N instances of one image, N >= 0, in pixels of the image file: before any resizing, crop or flip.

    Coordinates are continuous, x to the right and y down from the top left corner: the box of the single pixel in row r
    and column c is (c, r, c + 1, r + 1). Every box has a width and a height above 0. A mask lies in its box, except for
    rounding by less than one pixel.
    """

    boxes: np.ndarray  # (N, 4) float32, xyxy
    labels: np.ndarray  # (N,) int64, class indices from 0; all 0 if the source is class-agnostic
    masks: NotRequired[np.ndarray]  # (N, H, W) uint8 of 0 and 1; present if and only if requested
    size: NotRequired[tuple[int, int]]  # (H, W) of the image that was annotated; absent if unknown
    ignored: NotRequired[np.ndarray]  # (H, W) uint8; 1 where pixels are neither object nor background in the loss


@runtime_checkable
class ImageSource(Protocol):
    """A fixed sequence of images with their instances.

    The same index always gives the same image, id and annotations. Worker processes read sources, so a source can be
    pickled, and reading it neither draws random numbers nor depends on earlier reads.
    """

    @property
    def left_out(self) -> LeftOut | None:
        """Images and annotations that were skipped when the source was made; None if it does not keep count."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def image_path(self, index: int) -> Path:
        """Path of an image, or of an image inside a tar archive, for `read_image`. The file may have vanished."""
        ...

    def image_id(self, index: int) -> int:
        """Id of an image, unique in the source; detections and error messages refer to it."""
        ...

    def annotations(self, index: int, *, masks: bool) -> Annotations:
        """Instances of an image. The arrays may be views of the source's own: copy them before writing.

        Raises:
            ValueError: masks are requested, but the source holds boxes only.
        """
        ...
