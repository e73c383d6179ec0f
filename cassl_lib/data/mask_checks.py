"""Checks of masks before pycocotools sees them: it can end the interpreter, or take all memory, on invalid ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from cassl_lib.data.image_files import MOST_PIXELS
from cassl_lib.data.segmentations import Segmentations

FARTHEST = 1e5  # pixels from the top left corner, of a polygon's point
LONGEST_OUTLINE = 2**20  # pixels; pycocotools allocates about 100 bytes per pixel of a polygon's outline
AT_ONCE = 2**22  # values that are checked together, so that the checks need little memory
TEXT_START, TEXT_END = ord("0"), ord("0") + 64  # characters of compressed counts: six bits each
SHORT_RLE = 14  # counts or characters; a longer RLE is never empty, unless it has runs of no pixel
LONGEST_COUNT = 7  # characters of a count below 2^31


def first_invalid(segmentations: Segmentations, sizes: np.ndarray) -> tuple[int, str] | None:
    """The first annotation whose mask cannot be decoded safely, and why; None if there is none.

    Args:
        sizes: (A, 2) integers, heights and widths of the annotations' images in pixels.
    """
    parts = segmentations.parts
    sizes = sizes[parts[:, 0]]
    reasons = [_too_large(parts, sizes), _wrong_size(parts, sizes)]
    for kind, check in ((Segmentations.POLYGON, _polygons), (Segmentations.COUNTS, _counts)):
        reasons += [check(segmentations.numbers, rows, parts, sizes) for rows in _blocks(parts, kind)]
    for rows in _blocks(parts, Segmentations.COMPRESSED):
        reasons.append(_compressed(segmentations.text, rows, parts, sizes))
    found = [reason for reason in reasons if reason is not None]
    return min((int(parts[part, 0]), reason) for part, reason in found) if found else None


def empty_masks(segmentations: Segmentations, sizes: np.ndarray) -> list[int]:
    """The annotations, ascending, whose valid segmentation covers no pixel of the image.

    Only those that may be empty are decoded: short RLE, and polygons that are thin or leave the image.
    """
    parts = segmentations.parts
    surely = parts[:, 3] - parts[:, 2] > SHORT_RLE
    for rows in _blocks(parts, Segmentations.POLYGON):
        surely[rows] = _surely_covers(*_gathered(segmentations.numbers, parts, rows), sizes[parts[rows, 0]])
    covered = np.zeros(len(segmentations.first) - 1, bool)
    covered[parts[surely, 0]] = True
    suspects = np.flatnonzero(~covered & (np.diff(segmentations.first) > 0)).tolist()
    return [row for row in suspects if not segmentations.covers(row, tuple(sizes[row].tolist()))]


# ---- the checks of one kind of parts: the first part that is invalid, and why ----

Problem = tuple[int, str] | None


def _too_large(parts: np.ndarray, sizes: np.ndarray) -> Problem:
    wrong = sizes[:, 0] > MOST_PIXELS // sizes[:, 1]
    return _first(wrong, np.arange(len(parts)), lambda n: f"its image of {_by(sizes[n])} is too large for masks")


def _wrong_size(parts: np.ndarray, sizes: np.ndarray) -> Problem:
    wrong = (parts[:, 1] != Segmentations.POLYGON) & (parts[:, 4:] != sizes).any(1)
    return _first(wrong, np.arange(len(parts)), lambda n: f"its RLE has {_by(parts[n, 4:])}, its image {_by(sizes[n])}")


def _polygons(numbers: np.ndarray, rows: np.ndarray, parts: np.ndarray, sizes: np.ndarray) -> Problem:
    lengths = parts[rows, 3] - parts[rows, 2]
    if odd := _first(lengths % 2 == 1, rows, lambda n: "a polygon has an odd number of coordinates"):
        return odd
    values, first = _gathered(numbers, parts, rows)
    far = np.maximum.reduceat(np.abs(values), first[:-1])
    if beyond := _first(~(far <= FARTHEST), rows, lambda n: "a polygon has a point far outside the image"):
        return beyond
    steps = np.abs(_next(values, first) - values).reshape(-1, 2).max(1)
    outline = np.add.reduceat(steps, first[:-1] // 2)
    return _first(outline > LONGEST_OUTLINE, rows, lambda n: "the outline of a polygon is too long")


def _counts(numbers: np.ndarray, rows: np.ndarray, parts: np.ndarray, sizes: np.ndarray) -> Problem:
    if empty := _first(parts[rows, 3] == parts[rows, 2], rows, lambda n: "its RLE has no counts"):
        return empty
    values, first = _gathered(numbers, parts, rows)
    return _of_sums(np.add.reduceat(values, first[:-1]), rows, sizes)


def _compressed(text: np.ndarray, rows: np.ndarray, parts: np.ndarray, sizes: np.ndarray) -> Problem:
    if empty := _first(parts[rows, 3] == parts[rows, 2], rows, lambda n: "its RLE has no counts"):
        return empty
    values, first = _gathered(text, parts, rows)
    part_of = np.repeat(np.arange(len(rows)), np.diff(first))
    # A count is a group of characters of five bits each, the lowest first; bit 6 is set on all but the last.
    wrong = (values < TEXT_START) | (values >= TEXT_END)
    bits = values.astype(np.int64) - TEXT_START
    last = bits & 32 == 0
    begins = np.append(True, last[:-1])
    group_starts = np.flatnonzero(begins)
    lengths = np.diff(group_starts, append=len(bits))
    wrong |= np.repeat(lengths > LONGEST_COUNT, lengths)
    wrong[first[1:] - 1] |= ~last[first[1:] - 1]
    if found := _first(np.maximum.reduceat(wrong, first[:-1]), rows, lambda n: "the counts of its RLE are malformed"):
        return found
    position = np.arange(len(bits)) - np.repeat(group_starts, lengths)
    counts = np.add.reduceat((bits & 31) << (5 * position), group_starts)
    counts -= ((bits[last] & 16) > 0).astype(np.int64) << (5 * lengths)  # the sign
    counts, starts = _undo_differences(counts, part_of[group_starts], len(rows))
    negative = np.logical_or.reduceat(counts < 0, starts)
    if found := _first(negative, rows, lambda n: "a count of its RLE is negative"):
        return found
    return _of_sums(np.add.reduceat(counts, starts), rows, sizes)


def _undo_differences(counts: np.ndarray, part_of: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts, of which from the fourth on each is stored as the difference to the last but one; and their starts."""
    starts = np.searchsorted(part_of, np.arange(parts))
    position = np.arange(len(counts)) - starts[part_of]
    whole = counts.copy()
    for parity in (0, 1):
        own = np.flatnonzero((position % 2 == parity) & (position > 0))
        sums = np.cumsum(counts[own])
        begin = np.searchsorted(part_of[own], part_of[own])  # the first of the same part
        whole[own] = sums - sums[begin] + counts[own[begin]]
    return whole, starts


def _of_sums(sums: np.ndarray, rows: np.ndarray, sizes: np.ndarray) -> Problem:
    pixels = sizes[rows].prod(1)
    wrong = sums != pixels
    total = dict(zip(rows[wrong].tolist(), sums[wrong].tolist(), strict=True))
    return _first(
        wrong, rows, lambda n: f"the counts of its RLE make {total[n]:.0f} pixels, its image has {sizes[n].prod()}"
    )


# ---- ragged arrays ----


def _blocks(parts: np.ndarray, kind: int) -> Iterator[np.ndarray]:
    """The parts of a kind, in blocks that hold about `AT_ONCE` values."""
    rows = np.flatnonzero(parts[:, 1] == kind)
    block = np.cumsum(parts[rows, 3] - parts[rows, 2]) // AT_ONCE
    yield from (each for each in np.split(rows, np.flatnonzero(np.diff(block)) + 1) if len(each))


def _gathered(values: np.ndarray, parts: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of some parts, one after the other, and where each begins, (R + 1,)."""
    starts, lengths = parts[rows, 2], parts[rows, 3] - parts[rows, 2]
    first = np.concatenate([[0], np.cumsum(lengths)])
    return values[np.arange(first[-1]) + np.repeat(starts - first[:-1], lengths)], first


def _next(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The next point of each point of closed polygons; both as x, y, x, y, ..."""
    following = np.roll(values, -2)
    following[first[1:] - 2], following[first[1:] - 1] = values[first[:-1]], values[first[:-1] + 1]
    return following


def _surely_covers(values: np.ndarray, first: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Whether a polygon lies in its image and is on average more than a pixel thick."""
    points, following, starts = values.reshape(-1, 2), _next(values, first).reshape(-1, 2), first[:-1] // 2
    low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
    inside = (low >= 0).all(1) & (high <= sizes[:, ::-1]).all(1)
    twice = np.add.reduceat(points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0], starts)
    return inside & (np.abs(twice) > 2 * (high - low).max(1)) & (high - low > 2).all(1)


def _first(wrong: np.ndarray, rows: np.ndarray, reason) -> Problem:
    if not wrong.any():
        return None
    part = int(rows[int(wrong.argmax())])
    return part, reason(part)


def _by(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]} (height x width)"
