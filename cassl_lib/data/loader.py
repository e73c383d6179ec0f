"""Samples and their order: which image comes at which step, whatever the number of processes or crashes in between.

The order is a function of seed and position alone: position p of a stage is image `permutation(seed, epoch)[p % n]` and
its augmentation draws from a generator seeded by (seed, p). So a run continues at any step without a stored iterator,
and two processes see together what one would see.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors

from cassl_lib import paths
from cassl_lib.data.image_files import eight_bits, open_file, own_fault
from cassl_lib.data.source import ImageSource
from cassl_lib.errors import DataError


def read_image(path: Path) -> torch.Tensor:
    """(3, H, W) uint8 RGB of an image file, or of an image inside a tar that a pool names.

    Gray, palette and CMYK are converted. Raises OSError if unreadable.
    """
    # By Pillow: as fast as torchvision's decode_image, with the same pixels, but a damaged JPEG can crash that one.
    try:
        with open_file(path) as file, Image.open(file) as image:
            pixels = np.array(eight_bits(image).convert("RGB"))
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise OSError(f"damaged: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


class Samples(Dataset):
    """(image, target, image id, unreadable) of a source, for tickets (position, index).

    A source has `len`, `image_path(i)`, `image_id(i)` and `annotations(i, masks=...)`: a dict of boxes, labels, masks
    and, if the source knows it, the `size` (H, W) of the image that they were made for and `ignored` (H, W), where
    nothing is to be learned. An image that cannot be read or has another size is named in `unreadable`, and replaced by
    the next one that can be used or, with `replace=False`, left out.

    Args:
        classes: False sets every label to 0: the class-agnostic conversion of Sec. 3.1.
    """

    def __init__(self, source: ImageSource, transform, *, masks: bool, classes: bool, seed: int = 0, replace: bool = True):
        self.source, self.transform, self.replace = source, transform, replace
        self.masks, self.classes, self.seed = masks, classes, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, ticket: tuple[int, int]):
        position, index = ticket
        at, image, found, unreadable = self._read(index)
        if image is None:
            return None, None, self.source.image_id(at), unreadable
        target = self._target(found, tuple(image.shape[-2:]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed_of(self.seed, position))
            image, target = self.transform(tv_tensors.Image(image), target)
        return image, target, self.source.image_id(at), unreadable

    def _read(self, index: int):
        """(index, image, annotations, unreadable) of the image at `index` or, if it is damaged, of the next whole one.

        An image of another size than its annotations is not the one that they were made for: it counts as damaged.
        """
        unreadable = []
        for offset in range(min(100, len(self.source)) if self.replace else 1):
            at = (index + offset) % len(self.source)
            path = self.source.image_path(at)
            try:
                image = read_image(path)
            except OSError as error:
                unreadable.append(f"{paths.portable(path)} ({own_fault(path, error)})")
                continue
            found, (height, width) = self.source.annotations(at, masks=self.masks), image.shape[-2:]
            expected = found.get("size", (height, width))
            if expected == (height, width):
                return at, image, found, unreadable
            problem = f"{height}x{width} pixels, listed as {expected[0]}x{expected[1]}"
            unreadable.append(f"{paths.portable(path)} ({problem})")
        if self.replace:
            raise DataError(f"{len(unreadable)} images in a row cannot be used, the last is {unreadable[-1]}")
        return index, None, None, unreadable

    def _target(self, found: dict, size: tuple[int, int]) -> dict:
        labels = torch.from_numpy(found["labels"].copy())
        target = {
            "boxes": tv_tensors.BoundingBoxes(torch.from_numpy(found["boxes"].copy()), format="XYXY", canvas_size=size),
            "labels": labels if self.classes else torch.zeros_like(labels),
        }
        if self.masks:
            target["masks"] = tv_tensors.Mask(torch.from_numpy(found["masks"]))
        if "ignored" in found:
            target["ignored"] = tv_tensors.Mask(torch.from_numpy(found["ignored"]))
        return target


class Order:
    """The tickets of steps `start` to `stop`, one list a step; rank r of w takes every w-th of the global batch."""

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


def batches(samples: Samples, order, *, workers: int) -> DataLoader:
    """A loader of (images, targets, image ids, unreadable) lists in the given order."""
    return DataLoader(
        samples,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
        generator=torch.Generator(),  # of the workers' seeds: they are not to be drawn from the model's random stream
    )


def in_turn(indices: Iterable[int], batch_size: int) -> list[list[tuple[int, int]]]:
    """Tickets that visit these images once, in order, for testing and labeling."""
    mine = [(index, index) for index in indices]
    return [mine[at : at + batch_size] for at in range(0, len(mine), batch_size)]


def _collate(samples):
    whole = [sample for sample in samples if sample[0] is not None]
    images, targets, ids = ([sample[part] for sample in whole] for part in range(3))
    return images, targets, ids, [name for sample in samples for name in sample[3]]


def _seed_of(seed: int, position: int) -> int:
    """A 63-bit seed for one sample: neighboring positions must not give related streams."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=8).digest(), "little") >> 1
