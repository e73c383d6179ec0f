"""From a finished run to detections in anyone's images."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from cassl_lib.data.augment import test_transform
from cassl_lib.data.image_files import ENDINGS
from cassl_lib.data.loader import read_image
from cassl_lib.errors import DataError
from cassl_lib.evaluation.detector import coco_results
from cassl_lib.labels.shards import AGNOSTIC
from cassl_lib.runs import Run, find_run
from cassl_lib.stages.models import check_trained, load_detector

Image = torch.Tensor | np.ndarray | str | Path


class Predictor:
    """The detector of a finished run, with the run's own test size and classes.

        predictor = Predictor("finetune-1a2b")        # a run's name, unique prefix, or folder
        detections = predictor.predict("photo.jpg")
        predictor.show("photos/")                     # a Figure

    Attributes:
        classes: names of the labels; ["object"] for a class-agnostic detector.
    """

    def __init__(self, run: Run | str | Path):
        """
        Raises:
            MissingRun: there is no such finished run.
            ConfigError: the run is not of a stage that trains a detector.
        """
        self.run = run if isinstance(run, Run) else find_run(str(run))
        check_trained(self.run)
        self.detector = load_detector(self.run)
        self.classes: list[str] = self.run.result["classes"]
        self._transform = test_transform(self.run.config.augment)

    def predict(self, images: Image | Sequence[Image], *, threshold: float = 0.3) -> list[dict[str, np.ndarray]]:
        """Detections with a score above `threshold`.

        Args:
            images: a file, a folder, an image, or a sequence of files and images. An image is RGB uint8, a tensor
                (3, H, W) or an array (H, W, 3).

        Returns:
            One dict per image: boxes (N, 4) float32 xyxy in pixels of the image as given, scores (N,) in [0, 1],
            descending, labels (N,) int64 into `classes` and, if the detector has them, masks (N, H, W) bool.

        Raises:
            DataError: a file that is missing or not an image.
        """
        return [_as_arrays(self._detect(image, threshold)) for image in each_image(images)]

    def show(self, images: Image | Sequence[Image], *, threshold: float = 0.3, count: int = 8):
        """A figure of the first `count` images with their detections."""
        from cassl_lib import plotting

        loaded = list(itertools.islice(each_image(images), count))
        detections = [_as_arrays(self._detect(image, threshold)) for image in loaded]
        names = self.classes if len(self.classes) > 1 else None
        return plotting.show_instances(loaded, detections, names=names)

    def coco_results(
        self, images: Image | Sequence[Image], image_ids: Sequence[int] | None = None, *, threshold: float = 0.05
    ) -> list[dict]:
        """Detections as COCO's results format, ready for `json.dumps`.

        Args:
            image_ids: the id of each image; by default 1, 2, ... in the order of `images`.

        Returns:
            One dict per detection: image_id, category_id, bbox [x, y, width, height] in pixels, score and, if the
            detector has masks, segmentation as compressed RLE.
        """
        ids = itertools.count(1) if image_ids is None else image_ids
        pairs = zip(ids, each_image(images), strict=image_ids is not None)
        categories = np.array([category["id"] for category in self.run.result.get("categories") or AGNOSTIC])
        results = []
        for image_id, image in pairs:
            results += coco_results(int(image_id), self._detect(image, threshold), categories)
        for mask in (result["segmentation"] for result in results if "segmentation" in result):
            mask["counts"] = mask["counts"].decode()  # JSON has no bytes
        return results

    def _detect(self, image: torch.Tensor, threshold: float) -> dict[str, torch.Tensor]:
        resized, _ = self._transform(image, {})
        (detections,) = self.detector.predict([resized.to(self.detector.device)], sizes=[tuple(image.shape[-2:])])
        kept = detections["scores"] > threshold
        return {name: value[kept].cpu() for name, value in detections.items()}

    def __repr__(self) -> str:
        classes = f"{len(self.classes)} classes" if len(self.classes) > 1 else "class-agnostic"
        return f"Predictor({self.run.id}, {classes})"

    def _repr_html_(self) -> str:
        names = f"<p>{html.escape(', '.join(self.classes))}</p>" if len(self.classes) > 1 else ""
        return f"<p><code>{html.escape(repr(self))}</code></p>{names}"


def _as_arrays(detections: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in detections.items()}


def load_images(images: Image | Sequence[Image]) -> list[torch.Tensor]:
    """Images as (3, H, W) uint8 RGB tensors, from files, folders (sorted by name), tensors or arrays.

    Raises:
        DataError: a file that is missing or not an image, a folder without images, an array of another shape.
    """
    return list(each_image(images))


def each_image(images: Image | Sequence[Image]) -> Iterator[torch.Tensor]:
    """The images of `load_images`, one at a time, so that a folder may be larger than memory."""
    if isinstance(images, (str, Path)):
        yield from map(_read, image_files(images))
    elif isinstance(images, (torch.Tensor, np.ndarray)):
        yield _as_tensor(images)
    else:
        for image in images:
            yield from each_image(image)


def image_files(place: str | Path) -> list[Path]:
    """The file itself, or the images in a folder, sorted by name."""
    path = Path(place).expanduser()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give an image or a folder of images")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: no image in this folder; image files end in {' '.join(ENDINGS)}")
    return files


def _read(path: Path) -> torch.Tensor:
    try:
        return read_image(path)
    except OSError as error:
        raise DataError(f"{path}: {error}; give an image file") from error


def _as_tensor(image: torch.Tensor | np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(image).permute(2, 0, 1) if isinstance(image, np.ndarray) and image.ndim == 3 else image
    if not isinstance(tensor, torch.Tensor) or tensor.ndim != 3 or len(tensor) != 3 or tensor.dtype != torch.uint8:
        shape = f"{tuple(image.shape)} {image.dtype}"
        raise DataError(f"image {shape}: give uint8 RGB, a tensor (3, H, W) or an array (H, W, 3)")
    return tensor
