"""The verb `pool`: index unlabeled images once, and keep validation images out of them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from cassl_lib import paths
from cassl_lib.config import SPLITS
from cassl_lib.data.datasets import paper_parts, split_counts
from cassl_lib.data.pool.build import build_pool
from cassl_lib.data.pool.index import REASONS, Pool, left_out_file, save
from cassl_lib.data.pool.near_duplicates import DISTANCE, Near, exclude, near_duplicates, write_pairs
from cassl_lib.errors import DataError

SHOWN = 5  # pairs


def add_verb(verbs) -> None:
    """Add `pool` to the parser's verbs."""
    pool = verbs.add_parser("pool", help="index unlabeled images from any number of parts as one Parquet file")
    pool.set_defaults(act=_pool)
    pool.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help="a folder of images or of .tar files, a .tar, a COCO JSON, Open Images CSV or Places365 .txt list (each "
        "with :FOLDER if its images are elsewhere), or an earlier index .parquet; PART@0.3 takes 30 %%",
    )
    pool.add_argument("--split", choices=SPLITS, help="a split of the paper, below $CASSL_DATASETS, instead of parts")
    pool.add_argument("--out", required=True, type=Path, metavar="FILE.parquet", help="the index that is written")
    pool.add_argument("--against", metavar="PART", help="images that the pool must not resemble: validation")
    pool.add_argument(
        "--near", choices=("report", "exclude"), default="report", help="what to do with near-duplicates of them"
    )
    pool.add_argument("--distance", type=int, default=DISTANCE, help="bits, of 64, in which near-duplicates may differ")


def _pool(parsed: argparse.Namespace) -> None:
    if bool(parsed.parts) == bool(parsed.split):
        raise DataError("give the parts of the pool, or --split tiny, small, base or large")
    if parsed.out.suffix != ".parquet":
        raise DataError(f"--out {parsed.out}: an index must end in .parquet; use {parsed.out}.parquet")
    if parsed.near == "exclude" and not parsed.against:
        raise DataError("--near exclude needs --against, the images that the pool must not resemble")
    if not 0 <= parsed.distance < 32:
        raise DataError(f"--distance {parsed.distance} is out of range; use 0 to 31")
    check_writable(parsed.out)
    folder = paths.runs() / "pools"
    pool = build_pool(paper_parts(parsed.split) if parsed.split else parsed.parts, folder)
    near = _near(pool, parsed.against, parsed.distance, folder) if parsed.against else []
    if near and parsed.near == "exclude":
        pool = exclude(pool, near, parsed.out)
    elif pool.index.resolve() != parsed.out.resolve():
        pool = save(pool, parsed.out)
    print(table(split_counts(pool)))
    if left_out := str(pool.left_out):
        print(f"{left_out}\nall that was left out: {left_out_file(pool.index)}")
    if parsed.against:
        print(_near_report(near, parsed))
    print(f"{len(pool):,} images, fingerprint {pool.fingerprint}; use them with: -p unlabeled {pool.index}")


def check_writable(file: Path) -> None:
    """Raise DataError, before any work, if a file cannot be written later; creates its folder."""
    if file.is_dir():
        raise DataError(f"{file} is a folder; name a file in it")
    file.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(file.parent, os.W_OK):
        raise DataError(f"{file}: no permission to write to {file.parent}; name another folder")


def _near(pool: Pool, part: str, distance: int, folder: Path) -> list[Near]:
    against = build_pool([part], folder)
    return near_duplicates(pool, [against.image_path(place) for place in range(len(against))], distance=distance)


def _near_report(near: list[Near], parsed: argparse.Namespace) -> str:
    file = parsed.out.with_suffix(".near.csv")
    write_pairs(near, file)
    done = "excluded" if parsed.near == "exclude" else "kept; use --near exclude to leave them out"
    lines = [f"{len({pair.place for pair in near}):,} images within {parsed.distance} bits of {parsed.against}: {done}"]
    lines += [f"  {pair.path} resembles {pair.like} ({pair.distance} bits)" for pair in near[:SHOWN]]
    return "\n".join([*lines, f"all pairs: {file}"])


def table(rows: list[dict]) -> str:
    """`split_counts` as aligned text; reasons that do not occur have no column."""
    occurring = [reason for reason in REASONS if any(row[reason] for row in rows)]
    names = ["part", "expected", "listed", *occurring, "images"]
    lines = [names] + [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    form = "  ".join([f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])])
    whys = ["", *(row["why"] for row in rows)]
    return "\n".join(f"{form.format(*line)}  {why}".rstrip() for line, why in zip(lines, whys, strict=True))


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
