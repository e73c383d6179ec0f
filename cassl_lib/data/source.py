"""The contract of an image source: where training, evaluation and labeling get images and their instances from.

`Samples` (data/loader.py) turns a source into training samples. Implementations: `CocoImages` and `EntityImages` (labeled
sets), `PseudoLabeled` (a store of pseudo labels), `Pool` (unlabeled images) and, for measuring speed,
`SyntheticPhotos` and `PoolSample` in tools/plan.
"""

from __future__ import annotations

from pathlib import Path
from typing import NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np

from cassl_lib.errors import LeftOut


class Annotations(TypedDict):
    """The N instances of one image, N >= 0, in the frame of the image file: pixels, before any resizing or flip.

    Coordinates are continuous, x to the right and y down from the top left corner: a box around the single pixel in row
    r and column c is (c, r, c + 1, r + 1). All boxes have a width and height above 0.
    """

    boxes: np.ndarray  # (N, 4) float32, xyxy
    labels: np.ndarray  # (N,) int64, class indices from 0; all 0 where the source is class-agnostic
    masks: NotRequired[np.ndarray]  # (N, H, W) uint8 of 0 and 1; present if and only if asked for
    size: NotRequired[tuple[int, int]]  # (H, W) that the annotations were made for; absent if unknown
    ignored: NotRequired[np.ndarray]  # (H, W) uint8, 1 where locations count neither as object nor as background


@runtime_checkable
class ImageSource(Protocol):
    """A fixed sequence of images with their instances.

    The same index always gives the same image, id and annotations. A source is read by worker processes: it can be
    pickled, and reading it draws no random numbers and changes no result of another call.
    """

    @property
    def left_out(self) -> LeftOut | None:
        """Images and annotations that were skipped when the source was read; None if the source does not check."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def image_path(self, index: int) -> Path:
        """Path of an image, or of an image inside a tar archive, as `read_image` takes it. The file may be absent."""
        ...

    def image_id(self, index: int) -> int:
        """Id of an image, unique in the source: detections and error messages refer to it."""
        ...

    def annotations(self, index: int, *, masks: bool) -> Annotations:
        """Instances of an image; arrays may be views, so copy them before writing.

        Raises:
            ValueError: masks are asked for, but the source holds boxes only (DataError is a ValueError).
        """
        ...
