"""Pictures of a finished chain: in the run store after `make demo`, in `figures/` by `make figures`."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from cassl_lib import look, paths, plots, summary
from cassl_lib.config import Config
from cassl_lib.data import sources
from cassl_lib.data.loader import read_image
from cassl_lib.pseudo_labels import PseudoLabels

SHOWN = 6  # images in a row


def draw(config: Config, folder: Path) -> list[Path]:
    """Write the pictures into `folder`; needs the runs of the whole chain (`make demo`)."""
    runs = summary.chain(config)
    figures = {
        "pipeline": plots.pipeline_figure(),
        "pseudo_labels": pseudo_labels(config, PseudoLabels(runs["labels"].folder / "store")),
        "detections": detections(config, {"baseline": runs["baseline"], "CA-SSL": runs["cassl"]}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        written.append(folder / f"{name}.png")
        _save(figure, written[-1])
    return written


def _save(figure, file: Path) -> None:
    """As a PNG of 128 colours: a quarter of the bytes, and people clone them."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    Image.open(buffer).convert("RGB").quantize(128).save(file, optimize=True)


def pseudo_labels(config: Config, labels: PseudoLabels):
    """Pool images with their labels above the threshold."""
    kept = labels.at(config.label.threshold)
    items = [kept[index] for index in range(min(SHOWN, len(kept)))]
    shown = [{name: item[name] for name in ("boxes", "scores")} for item in items]
    images = [read_image(paths.image(item["file_name"])) for item in items]
    return plots.side_by_side(images, {"pseudo labels": shown})


def detections(config: Config, runs: dict):
    """The same validation images: truth, then each run's detections above a score of 0.4."""
    val = sources.validation_set(config)
    chosen = range(min(SHOWN, len(val)))
    images = [read_image(val.image_path(index)) for index in chosen]
    rows = {"truth": [val.annotations(index, masks=config.model.masks) for index in chosen]}
    for name, run in runs.items():
        found = look.detections(run, images, above=0.4)
        rows[name] = [{part: item[part] for part in item if part != "scores"} for item in found]
    return plots.side_by_side(images, rows, names=val.classes)
