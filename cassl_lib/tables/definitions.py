"""The paper's tables as data: rows of cells, each cell a number of a run that it requests.

    Cell     a number of a requested run
    ROWS     by the number of the paper's table, its rows for a configuration, named as printed; and "threshold", which
             the paper does not have

Nothing here trains. `runner` finds the runs, makes those that are missing, and collects the numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from cassl_lib.config import PARTS, Config
from cassl_lib.errors import ConfigError
from cassl_lib.profiles import PROFILES
from cassl_lib.stages.requests import (
    Request,
    baseline,
    finetune,
    longer,
    pseudo_labeler,
    pseudo_labels,
    warmup,
    with_inputs,
)

UNITS = {"warmup": 5, "finetune": 3}  # of 12 epochs: what the profile's own length stands for (Sec. 4: 60 and 36)


@dataclass(frozen=True)
class Cell:
    """A number of a run's result: metrics[kind][number]."""

    request: Request
    kind: str  # box, box_agnostic, mask, mask_agnostic, panoptic
    number: str = "AP"
    longer: tuple[Request, ...] = ()  # the same at other lengths: the best of all on held-out images counts

    @property
    def candidates(self) -> tuple[Request, ...]:
        return (self.request, *self.longer)


@dataclass(frozen=True)
class Row:
    name: str  # as the paper prints it
    cells: dict[str, Cell]  # by column; a column that the profile leaves out is absent


def warmed_up(config: Config, labeler: Request | None = None) -> Request:
    """A warm-up on the labels of `labeler`; None takes the configuration's own."""
    return warmup(config, pseudo_labels(config, labeler))


def finetuned(
    config: Config, start: Request | None = None, kind: str = "box", number: str = "AP", *, parts=PARTS[:3]
) -> Cell:
    """A number of the detector that is finetuned from `start`, a warm-up or a pseudo labeler; None is the baseline."""
    if start is not None:
        return Cell(finetune(config, start, parts=parts), kind, number)
    # DEVIATES: the baselines of Tables 2 and 9 (46.8) were most likely trained for 36 epochs; ours are the best of
    # several lengths, these 36 epochs among them, so that longer training alone does not explain a gain.
    # A panoptic baseline, which only one cell of Table 2 needs, takes the fewer lengths of the chain.
    curve = PROFILES[config.profile]["baseline_curve"]
    first, *others = (
        baseline(config, length) for length in (curve if config.target == "instances" else config.baseline_lengths)
    )
    return Cell(first, kind, number, tuple(others))


def lengths(config: Config, stage: str, units: int) -> Config:
    """The stage trained for `units` times 12 epochs: the profile's own length is 5 (warm-up) or 3 (finetuning)."""
    return longer(config, stage, units / UNITS[stage])


def _augmented(config: Config, kind: str) -> Config:
    return replace(config, augment=replace(config.augment, kind=kind))


APS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def table1(config: Config) -> list[Row]:
    """Quality gap of pseudo labels: the same detector trained on either, with and without classes."""
    # DEVIATES: Table 1 trains FCOS R-50 for 36 epochs on both; here it is the profile's own detector and lengths.
    plain, specific = (replace(config, annotation="objects", class_specific=which) for which in (False, True))
    names = {"class-specific AP": (specific, "box"), "class-agnostic AP": (plain, "box_agnostic")}
    human = {column: Cell(pseudo_labeler(each), kind) for column, (each, kind) in names.items()}
    pseudo = {column: Cell(warmed_up(each), kind) for column, (each, kind) in names.items()}
    return [Row("COCO train2017", human), Row("COCO unlabeled", pseudo)]


def table2(config: Config) -> list[Row]:
    """Data of the warm-up. The first row starts from the profile's initial weights: ImageNet's, or random."""
    plain = replace(config, annotation="objects", class_specific=False)
    specific, entities = replace(plain, class_specific=True), replace(plain, annotation="entities")

    def after(start: Request | None, *, panoptic: bool) -> dict[str, Cell]:
        instances, segments = (replace(plain, target=target) for target in ("instances", "panoptic"))
        kinds = {"finetuned det AP": "box", "finetuned mask AP": "mask"}
        cells = {column: finetuned(instances, start, kind) for column, kind in kinds.items()}
        if panoptic and config.model.masks:
            cells["finetuned PQ"] = finetuned(segments, start, "panoptic", "PQ")
        return cells

    def agnostic(request: Request) -> dict[str, Cell]:
        kinds = {"cls-agnostic object box AP": "box_agnostic", "cls-agnostic object mask AP": "mask_agnostic"}
        return {column: Cell(request, kind) for column, kind in kinds.items()}

    labeler, objects = pseudo_labeler(plain), warmed_up(plain)
    classes, segments = warmed_up(specific), warmed_up(entities)
    return [
        Row("ImageNet", after(None, panoptic=True)),
        Row("Objects (G,A)", agnostic(labeler) | after(labeler, panoptic=False)),
        Row("Objects (P,S)", {"cls-specific AP": Cell(classes, "box")} | after(classes, panoptic=False)),
        Row("Objects (P,A)", agnostic(objects) | after(objects, panoptic=True)),
        Row("Entities (P,A)", {"entity AP": Cell(segments, "box_agnostic")} | after(segments, panoptic=True)),
    ]


def table3(config: Config) -> list[Row]:
    """Epochs of the warm-up."""
    kept = grid(config)
    rows = {f"{12 * units} ({units}x)": units for units in range(1, 6)}
    return [
        Row(name, _aps(warmed_up(lengths(config, "warmup", units))) if units in kept else {})
        for name, units in rows.items()
    ]


def _aps(request: Request) -> dict[str, Cell]:
    return {number: Cell(request, "box_agnostic", number) for number in APS}


def table4(config: Config) -> list[Row]:
    """Finetuned AP over epochs of warm-up (columns) and finetuning (rows), in units of 12."""
    rows, kept = [], grid(config)
    for tuning in range(1, 6):
        cells = {}
        for warming in range(1, 6):
            if {tuning, warming} <= set(kept):
                start = warmed_up(lengths(config, "warmup", warming))
                cells[f"{warming}x"] = finetuned(lengths(config, "finetune", tuning), start)
        rows.append(Row(f"{tuning}x", cells))
    return rows


def table5(config: Config) -> list[Row]:
    """Pseudo labelers of rising quality and the detectors that they warm up, columns from weak to strong."""
    # UNSTATED: Table 5, how the five labelers were made to differ; ours are trained for 1 to 5 fifths of the steps.
    kept, rows = grid(config), {"pseudo labeler": {}, "warmed-up target detector": {}}
    for fifths in range(1, 6):
        if fifths in kept:
            section = config.pseudo_labeler
            shorter = replace(section, epochs=section.epochs * fifths / 5, steps=round(section.steps * fifths / 5))
            labeler = pseudo_labeler(replace(config, pseudo_labeler=shorter))
            for name, request in zip(rows, (labeler, warmed_up(config, labeler)), strict=True):
                rows[name][str(fifths)] = Cell(request, "box_agnostic")
    return [Row(name, cells) for name, cells in rows.items()]


def table6(config: Config) -> list[Row]:
    """Weak and strong augmentation, of finetuning (rows) and warm-up (columns); the labeler's is weak."""
    kinds, rows = ("weak", "strong"), []
    labeler = pseudo_labeler(_augmented(config, "weak"))
    for tuning in kinds:
        cells = {}
        for warming in kinds:
            start = warmed_up(_augmented(config, warming), labeler)
            cells[f"{warming}, warm-up entity AP"] = Cell(start, "box_agnostic")
            cells[f"{warming}, finetuned det AP"] = finetuned(_augmented(config, tuning), start)
        rows.append(Row(tuning, cells))
    return rows


def table7(config: Config) -> list[Row]:
    """Scale of the unlabeled images.

    Raises:
        ConfigError: the pool is one of your own, which has no splits.
    """
    if config.unlabeled not in ("scenes", "split"):
        raise ConfigError(f"unlabeled={config.unlabeled!r}: Table 7 compares the four splits; leave it out")
    rows = []
    for split in ("tiny", "small", "base", "large"):
        start = warmed_up(replace(config, split=split))
        cells = {
            "warm-up entity AP": Cell(start, "box_agnostic"),
            "finetuned det AP": finetuned(config, start),
        }
        rows.append(Row(split.capitalize(), cells))
    return rows


def table9(config: Config) -> list[Row]:
    """Parts initialized from the warmed-up model; "classifier" copies its one channel to every class."""
    # DEVIATES: Table 9 is of the large pool and strong augmentation; ours shares the chain of the other tables.
    # `--split large --augment strong` runs the paper's.
    start = warmed_up(config)
    numbers = APS[:3]
    rows = [Row("nothing", {number: finetuned(config, number=number) for number in numbers})]
    for count in range(1, 5):
        parts = PARTS[:count]
        cells = {number: finetuned(config, start, number=number, parts=parts) for number in numbers}
        rows.append(Row(", ".join(parts), cells))
    # Two options of finetuning that the nearest relatives publish and the paper does not mention (CutLER, AlignDet).
    own = config.finetune
    options = {
        "fresh layers at 4x rate": replace(own, fresh_rate=4.0),
        "1.5x rate and 0.5x weight decay": replace(
            own, learning_rate=1.5 * own.learning_rate, weight_decay=0.5 * own.weight_decay
        ),
    }
    for name, section in options.items():
        changed = replace(config, finetune=section)
        cells = {number: finetuned(changed, start, number=number) for number in numbers}
        rows.append(Row(", ".join([*PARTS[:3], name]), cells))
    return rows


def threshold_rows(config: Config) -> list[Row]:
    """Thresholds of the pseudo labels (eq. 3), which the paper does not print; all of them read one store."""
    rows = []
    for place, threshold in enumerate((0.3, 0.4, 0.5, 0.6, 0.7), start=1):
        cells = {}
        if place in grid(config):
            start = warmed_up(replace(config, pseudo_labels=replace(config.pseudo_labels, threshold=threshold)))
            cells["warm-up entity AP"] = Cell(start, "box_agnostic")
            cells["finetuned det AP"] = finetuned(config, start)
        rows.append(Row(str(threshold), cells))
    return rows


def shift_rows(config: Config) -> list[Row]:
    """Pools of equal size that look more and more different from the labeled images, which the paper does not have.

    Raises:
        ConfigError: the unlabeled images are not the embedded scenes.
    """
    if config.unlabeled != "scenes":
        raise ConfigError(f"unlabeled={config.unlabeled!r}: the shifted pools are embedded scenes; leave it out")
    names = {
        "base": "same look",
        "places": "other places",
        "openimages": "other light, more clutter",
    }
    rows = []
    for split, name in names.items():
        start = warmed_up(replace(config, split=split))
        cells = {"warm-up entity AP": Cell(start, "box_agnostic"), "finetuned det AP": finetuned(config, start)}
        rows.append(Row(name, cells))
    return rows


ROWS: dict[int | str, Callable[[Config], list[Row]]] = {
    1: table1,
    2: table2,
    3: table3,
    4: table4,
    5: table5,
    6: table6,
    7: table7,
    9: table9,
    "threshold": threshold_rows,
    "shift": shift_rows,
}


def applicable(config: Config) -> list[int | str]:
    """The tables that make sense for the configuration's unlabeled images."""
    pools = {7: ("scenes", "split"), "shift": ("scenes",)}
    return [table for table in ROWS if config.unlabeled in pools.get(table, (config.unlabeled,))]


def grid(config: Config) -> tuple[int, ...]:
    """Which of the five lengths, strengths and thresholds the profile runs (Tables 3 to 5, "threshold")."""
    return PROFILES[config.profile]["grid"]


def requests_of(rows: list[Row]) -> list[Request]:
    """Every run that the rows need, each once, after those that it starts from."""
    return with_inputs(request for row in rows for cell in row.cells.values() for request in cell.candidates)
