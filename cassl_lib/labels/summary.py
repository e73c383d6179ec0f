"""A pseudo-label store in a few lines: its size, and how many labels each threshold keeps."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cassl_lib.labels.store import PseudoLabelStore

SHOWN_THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # 0 keeps every stored label
HEADINGS = {
    "threshold": "score above",
    "labels": "labels",
    "labels_per_image": "per image",
    "images_with_labels": "images with labels",
}


def threshold_counts(store: PseudoLabelStore, thresholds: Sequence[float] = SHOWN_THRESHOLDS) -> list[dict]:
    """How many labels each threshold keeps; reads the scores of the whole store, about 3 seconds for 3.7M images.

    Returns:
        One row per threshold: `threshold`, `labels`, `labels_per_image`, `images_with_labels`, as Python numbers.
    """
    counts = store.statistics(thresholds)
    columns = (counts[name].tolist() for name in ("labels", "labels_per_image", "images_with_labels"))
    return [
        {"threshold": threshold, "labels": labels, "labels_per_image": mean, "images_with_labels": images}
        for threshold, labels, mean, images in zip(thresholds, *columns, strict=True)
    ]


def formatted_counts(rows: Sequence[dict]) -> list[list[str]]:
    """`HEADINGS` and the rows of `threshold_counts` as text, for a printed or an HTML table."""
    lines = [list(HEADINGS.values())]
    for row in rows:
        above = f"{row['threshold']:.2f}" if row["threshold"] else "all"
        lines.append([above, f"{row['labels']:,}", f"{row['labels_per_image']:.2f}", f"{row['images_with_labels']:,}"])
    return lines


def store_html(store: PseudoLabelStore) -> str:
    """What a notebook shows of a store: its facts, and the table of `threshold_counts`."""
    facts = {
        "folder": str(store.folder),
        "images": f"{len(store):,}, {len(store.unreadable):,} more were unreadable",
        "shards": f"{len(store.manifest['shards']):,}, {store.bytes_on_disk / 1e6:,.1f} MB on disk",
        "labeler": store.labeler,
        "threshold": f"{store.threshold:g}",
    }
    heading, *rows = formatted_counts(threshold_counts(store))
    return "".join(
        [
            "<table>",
            *(_row([name, value]) for name, value in facts.items()),
            "</table><table>",
            _row(heading, "th"),
            *map(_row, rows),
            "</table>",
        ]
    )


def _row(cells: Sequence[str], tag: str = "td") -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
