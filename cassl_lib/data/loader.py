"""Samples and their order: which image comes at which step, for any number of processes and after any interruption.

The order depends on seed and position alone: position p of a stage is image `permutation(seed, epoch)[p % n]`, and its
augmentation draws from a generator seeded by (seed, p). So training resumes at any step without a stored iterator, and
two processes together see the same samples as one.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors

from cassl_lib import paths
from cassl_lib.data.image_contents import other_size
from cassl_lib.data.image_files import DAMAGED, describe_damage, open_file
from cassl_lib.data.image_pixels import open_image, rgb
from cassl_lib.data.source import Annotations, ImageSource
from cassl_lib.errors import DataError
from cassl_lib.streams import stream

MOST_IN_A_ROW = 100  # unusable images, after which something is wrong with the source
SMALL = 256 << 10  # bytes of a decoded image and its masks, up to which they are kept decoded ...
KEPT = 256 << 20  # ... until a loading process holds so many


def read_image(path: Path) -> torch.Tensor:
    """(3, H, W) uint8 RGB of an image file, or of an image inside a tar archive (see `image_files.member_name`).

    The image is as displayed: turned by its EXIF orientation, and converted as in `image_pixels.rgb`. In memory the
    three colors of a pixel are neighbors, as torch resizes images fastest. Raises OSError if it cannot be read.
    """
    # Pillow is as fast as torchvision's decode_image, with equal pixels; but a damaged JPEG can crash decode_image.
    try:
        with open_file(path) as file, open_image(file) as image:
            pixels = rgb(image)
    except OSError:
        raise
    except DAMAGED as error:
        raise OSError(f"damaged: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


class Samples(Dataset):
    """Transformed samples of a source, indexed by tickets (position, index).

    A sample is (image, target, image id, unreadable). `target` has `boxes` (N, 4) xyxy in pixels of the image, `labels`
    (N,) int64 and, where applicable, `masks` (N, H, W) uint8 and `ignored` (H, W) uint8. An image that cannot be read,
    or has another size than its annotations, is replaced by the next usable one, or with `replace=False` by None; its
    name and the reason are listed in `unreadable`.

    Args:
        transform: (image (3, H, W) uint8, target) -> the same; draws from torch's generator, which is seeded by `seed`
            and the position.
        masks: whether targets have masks.
        classes: False sets every label to 0: the class-agnostic conversion of Sec. 3.1.
        keep: whether small images stay decoded, for sources that are read many times.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Callable,
        *,
        masks: bool,
        classes: bool,
        seed: int = 0,
        replace: bool = True,
        keep: bool = False,
    ):
        self.source, self.transform, self.replace = source, transform, replace
        self.masks, self.classes, self.seed = masks, classes, seed
        self.keep = keep
        self._kept: dict[int, tuple[torch.Tensor, Annotations]] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, ticket: tuple[int, int]) -> tuple[torch.Tensor | None, dict | None, int, list[str]]:
        position, index = ticket
        at, image, instances, unreadable = self._read(index)
        if image is None:
            return None, None, self.source.image_id(at), unreadable
        target = self._target(instances, tuple(image.shape[-2:]))
        with _seeded(stream(self.seed, position)):
            image, target = self.transform(tv_tensors.Image(image), target)
        return image, target, self.source.image_id(at), unreadable

    def _read(self, index: int) -> tuple[int, torch.Tensor | None, Annotations | None, list[str]]:
        """(index, image, annotations, unreadable) of the image at `index` or, if unusable, of the next usable one.

        An image of another size than its annotations is not the one that was annotated, so it is unusable.
        """
        if index in self._kept:
            return index, *self._kept[index], []
        unreadable = []
        for offset in range(min(MOST_IN_A_ROW, len(self.source)) if self.replace else 1):
            at = (index + offset) % len(self.source)
            path = self.source.image_path(at)
            try:
                image = read_image(path)
            except OSError as error:
                unreadable.append(f"{paths.portable(path)} ({describe_damage(path, error)})")
                continue
            instances, size = self.source.annotations(at, masks=self.masks), tuple(image.shape[-2:])
            expected = instances.get("size", size)
            if expected == size:
                self._keep(at, image, instances)
                return at, image, instances, unreadable
            unreadable.append(f"{paths.portable(path)} ({other_size(size, expected)})")
        if self.replace:
            raise DataError(
                f"{len(unreadable)} images in a row cannot be used, the last is {unreadable[-1]}; "
                "restore the images, or correct the list that names them"
            )
        return index, None, None, unreadable

    def _keep(self, index: int, image: torch.Tensor, instances: Annotations) -> None:
        """Keep a small image decoded, since small sets are read many times; transforms do not change it in place."""
        size = image.nbytes + sum(value.nbytes for value in instances.values() if hasattr(value, "nbytes"))
        if self.keep and size <= SMALL and self._kept_bytes + size <= KEPT:
            self._kept[index] = image, instances
            self._kept_bytes += size

    def _target(self, instances: Annotations, size: tuple[int, int]) -> dict:
        """The annotations as tensors that torchvision's transforms move together with the image."""
        labels = torch.from_numpy(instances["labels"].copy())
        boxes = torch.from_numpy(instances["boxes"].copy())
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": labels if self.classes else torch.zeros_like(labels),
        }
        if self.masks:
            target["masks"] = tv_tensors.Mask(torch.from_numpy(instances["masks"]))
        if "ignored" in instances:
            target["ignored"] = tv_tensors.Mask(torch.from_numpy(instances["ignored"]))
        return target


class Order:
    """The tickets of steps `start` to `stop` of training, one list per step.

    Args:
        size: number of images.
        batch_size: of all processes together; process `rank` of `world` takes every world-th sample of it.
    """

    def __init__(self, size: int, *, batch_size: int, start: int, stop: int, seed: int, rank: int = 0, world: int = 1):
        if batch_size % world:
            raise ValueError(f"batch_size={batch_size} over {world} processes: use a multiple of {world}")
        self.size, self.batch_size, self.start, self.stop = size, batch_size, start, stop
        self.seed, self.rank, self.world = seed, rank, world

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, permutation = -1, None
        for step in range(self.start, self.stop):
            tickets = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // self.size != epoch:
                    epoch = position // self.size
                    permutation = np.random.default_rng((self.seed, epoch)).permutation(self.size)
                tickets.append((position, int(permutation[position % self.size])))
            yield tickets[self.rank :: self.world]


def batches(samples: Samples, order: Iterable[list[tuple[int, int]]], *, workers: int) -> DataLoader:
    """A loader of batches in the given order: (images, targets, image ids, unreadable), each a list.

    Args:
        order: one list of tickets per batch, such as an `Order` or `in_turn`.
        workers: number of loading processes; 0 loads in this one.
    """
    return DataLoader(
        samples,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=keep_freed_memory,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
        generator=torch.Generator(),  # for the workers' seeds, which must not advance the model's random stream
    )


def in_turn(indices: Iterable[int], batch_size: int) -> list[list[tuple[int, int]]]:
    """Batches of tickets that visit each index once, in the given order, for evaluation and labeling."""
    tickets = [(index, index) for index in indices]
    return [tickets[at : at + batch_size] for at in range(0, len(tickets), batch_size)]


def _collate(samples: list[tuple]) -> tuple[list, list, list, list[str]]:
    usable = [sample for sample in samples if sample[0] is not None]
    images, targets, ids = ([sample[part] for sample in usable] for part in range(3))
    return images, targets, ids, [name for sample in samples for name in sample[3]]


def keep_freed_memory(worker: int = 0) -> None:
    """Make this process keep up to 128 MB of the memory that it frees, instead of returning it to the system.

    The system clears each page that it hands out again, which took a quarter of the time of strong augmentation.
    """
    trim_threshold, map_threshold = -1, -3  # names of glibc's settings; other C libraries have no `mallopt`
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, 128 << 20)
        mallopt(map_threshold, 32 << 20)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator, and restore its state afterward.

    Draws the same numbers as `torch.manual_seed` inside `fork_rng`, which is slower: it formats a stack trace on each
    call and seeds every device.
    """
    generator = torch.default_generator
    state = generator.get_state()
    try:
        generator.manual_seed(seed)
        yield
    finally:
        generator.set_state(state)
