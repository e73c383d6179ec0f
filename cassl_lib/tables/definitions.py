"""The paper's tables as data: rows of cells, each cell a number of a run that it asks for.

    Want     a request for a run: a stage, its settings, and the run it starts from, itself a Want
    Cell     a number of a wanted run
    ROWS     by the number of the paper's table, the rows for a configuration: their names as printed; and "threshold",
             a table that the paper does not have

Nothing here trains. `table_runs` finds the runs, makes those that are missing, and collects the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property

from cassl_lib.config import PARTS, Config, TrainConfig
from cassl_lib.errors import ConfigError
from cassl_lib.profiles import PROFILES

SHARED = ("seed", "crowd", "overlap", "labeled", "val", "scenes", "model", "augment")
DECISIVE = {  # of a configuration, for the stage alone, without the run it starts from
    "train_labeler": (*SHARED, "annotation", "class_specific", "labeler"),
    "label": ("split", "unlabeled", "scenes", "augment", "labeler", "label"),
    "warm_up": (*SHARED, "annotation", "class_specific", "warmup", "label"),
    "finetune": (*SHARED, "target", "finetune", "panoptic"),
}
ORDER = tuple(DECISIVE)  # of the stages
UNITS = {"warmup": 5, "finetune": 3}  # of 12 epochs: what the profile's own length stands for (Sec. 4: 60 and 36)


@dataclass(frozen=True)
class Want:
    """A request for a run; wants that ask for the same run are equal by `key`."""

    verb: str
    config: Config
    source: Want | None = None  # the run it starts from
    start: str = "scratch"  # of finetune: warmup, labeler or scratch
    parts: tuple[str, ...] = PARTS[:3]  # of finetune: what is copied from the source

    @cached_property
    def key(self) -> tuple:
        """What decides the run. The baseline's length also depends on the warm-up it is compared with."""
        config, names = self.config, DECISIVE[self.verb]
        if self.verb == "label":  # neither the threshold nor the training's augmentation is seen by it
            label, augment = replace(config.label, threshold=1.0), replace(config.augment, kind="weak")
            config = replace(config, label=label, augment=augment)
        if self._baseline:
            names = (*names, "warmup", "split", "unlabeled")
        own = tuple(getattr(config, name) for name in names)
        how = (self.start, self.parts if self.source else ()) if self.verb == "finetune" else ()
        return (self.verb, own, how, self.source.key if self.source else None)

    @property
    def _baseline(self) -> bool:
        return self.verb == "finetune" and self.start == "scratch"

    def with_sources(self) -> list[Want]:
        """This want after all that it starts from."""
        return [*(self.source.with_sources() if self.source else []), self]


@dataclass(frozen=True)
class Cell:
    """A number of a run: metrics[kind][number]."""

    want: Want
    kind: str  # box, box_agnostic, mask, mask_agnostic, panoptic
    number: str = "AP"


@dataclass(frozen=True)
class Row:
    name: str  # as the paper prints it
    cells: dict[str, Cell]  # by column; a column that the profile leaves out is absent


def labeler(config: Config) -> Want:
    return Want("train_labeler", config)


def warmup(config: Config, source: Want | None = None) -> Want:
    """A warm-up on the labels of `source`, a labeler; None takes the configuration's own."""
    return Want("warm_up", config, Want("label", config, source or labeler(config)))


def finetuned(config: Config, source: Want | None = None, parts: tuple[str, ...] = PARTS[:3]) -> Want:
    """A finetuning from `source`: a warm-up, a labeler, or None for the baseline of warm-up and finetuning's length."""
    # DEVIATES: the baselines of Tables 2 and 9 (46.8) were most likely trained for 36 epochs; ours get the steps of the
    # warm-up too, so that no row is ahead only because it was trained for longer.
    if source is None:
        return Want("finetune", config)
    start = "warmup" if source.verb == "warm_up" else "labeler"
    return Want("finetune", config, source, start, parts)


def lengths(config: Config, stage: str, units: int) -> Config:
    """The stage trained for `units` times 12 epochs: the profile's own length is 5 (warm-up) or 3 (finetuning)."""
    own: TrainConfig = getattr(config, stage)
    share = units / UNITS[stage]
    return replace(config, **{stage: replace(own, epochs=own.epochs * share, steps=round(own.steps * share))})


def _augmented(config: Config, kind: str) -> Config:
    return replace(config, augment=replace(config.augment, kind=kind))


def _aps(want: Want, kind: str) -> dict[str, Cell]:
    return {number: Cell(want, kind, number) for number in ("AP", "AP50", "AP75", "APs", "APm", "APl")}


def table1(config: Config) -> list[Row]:
    """Quality gap of pseudo labels: the same detector trained on either, with and without classes."""
    # DEVIATES: Table 1 trains FCOS R-50 for 36 epochs on both; here it is the profile's own detector and lengths.
    plain, specific = (replace(config, annotation="objects", class_specific=which) for which in (False, True))
    names = {"class-specific AP": (specific, "box"), "class-agnostic AP": (plain, "box_agnostic")}
    truth = {column: Cell(labeler(each), kind) for column, (each, kind) in names.items()}
    pseudo = {column: Cell(warmup(each), kind) for column, (each, kind) in names.items()}
    return [Row("COCO train2017", truth), Row("COCO unlabeled", pseudo)]


def table2(config: Config) -> list[Row]:
    """Data of the warm-up. The first row's initial weights are the profile's: ImageNet's, or random."""
    plain = replace(config, annotation="objects", class_specific=False)
    specific, entities = replace(plain, class_specific=True), replace(plain, annotation="entities")

    def after(source: Want | None, *, panoptic: bool) -> dict[str, Cell]:
        tuned = finetuned(replace(plain, target="instances"), source)
        cells = {"finetuned det AP": Cell(tuned, "box"), "finetuned mask AP": Cell(tuned, "mask")}
        if panoptic and config.model.masks:
            segments = finetuned(replace(plain, target="panoptic"), source)
            cells["finetuned PQ"] = Cell(segments, "panoptic", "PQ")
        return cells

    def agnostic(want: Want) -> dict[str, Cell]:
        kinds = {"cls-agnostic object box AP": "box_agnostic", "cls-agnostic object mask AP": "mask_agnostic"}
        return {column: Cell(want, kind) for column, kind in kinds.items()}

    truth, objects = labeler(plain), warmup(plain)
    classes, segments = warmup(specific), warmup(entities)
    return [
        Row("ImageNet", after(None, panoptic=True)),
        Row("Objects (G,A)", agnostic(truth) | after(truth, panoptic=False)),
        Row("Objects (P,S)", {"cls-specific AP": Cell(classes, "box")} | after(classes, panoptic=False)),
        Row("Objects (P,A)", agnostic(objects) | after(objects, panoptic=True)),
        Row("Entities (P,A)", {"entity AP": Cell(segments, "box_agnostic")} | after(segments, panoptic=True)),
    ]


def table3(config: Config) -> list[Row]:
    """Epochs of the warm-up."""
    kept = grid(config)
    rows = {f"{12 * units} ({units}x)": units for units in range(1, 6)}
    return [
        Row(name, _aps(warmup(lengths(config, "warmup", units)), "box_agnostic") if units in kept else {})
        for name, units in rows.items()
    ]


def table4(config: Config) -> list[Row]:
    """Finetuned AP over epochs of warm-up (columns) and finetuning (rows), in units of 12."""
    rows, kept = [], grid(config)
    for tuning in range(1, 6):
        cells = {}
        for warming in range(1, 6):
            if {tuning, warming} <= set(kept):
                source = warmup(lengths(config, "warmup", warming))
                cells[f"{warming}x"] = Cell(finetuned(lengths(config, "finetune", tuning), source), "box")
        rows.append(Row(f"{tuning}x", cells))
    return rows


def table5(config: Config) -> list[Row]:
    """Pseudo labelers of rising quality and the detectors that they warm up, columns from weak to strong."""
    # UNSTATED: Table 5, how the five labelers were made to differ; ours are trained for 1 to 5 fifths of the steps.
    kept, rows = grid(config), {"pseudo labeler": {}, "warmed-up target detector": {}}
    for fifths in range(1, 6):
        if fifths in kept:
            own = replace(config.labeler, epochs=config.labeler.epochs * fifths / 5)
            own = replace(own, steps=round(config.labeler.steps * fifths / 5))
            teacher = labeler(replace(config, labeler=own))
            for name, want in zip(rows, (teacher, warmup(config, teacher)), strict=True):
                rows[name][str(fifths)] = Cell(want, "box_agnostic")
    return [Row(name, cells) for name, cells in rows.items()]


def table6(config: Config) -> list[Row]:
    """Weak and strong augmentation, of finetuning (rows) and warm-up (columns); the labeler's is weak."""
    kinds, rows = ("weak", "strong"), []
    teacher = labeler(_augmented(config, "weak"))
    for tuning in kinds:
        cells = {}
        for warming in kinds:
            source = warmup(_augmented(config, warming), teacher)
            cells[f"{warming}, warm-up entity AP"] = Cell(source, "box_agnostic")
            tuned = finetuned(_augmented(config, tuning), source)
            cells[f"{warming}, finetuned det AP"] = Cell(tuned, "box")
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
        source = warmup(replace(config, split=split))
        cells = {
            "warm-up entity AP": Cell(source, "box_agnostic"),
            "finetuned det AP": Cell(finetuned(config, source), "box"),
        }
        rows.append(Row(split.capitalize(), cells))
    return rows


def table9(config: Config) -> list[Row]:
    """Parts that are initialized from the warmed-up model; "classifier" copies its one channel to every class."""
    # DEVIATES: Table 9 is of the large pool and strong augmentation; ours shares the chain of the other tables.
    # `--split large --augment strong` asks for the paper's.
    source = warmup(config)
    rows = [Row("nothing", _aps(finetuned(config), "box"))]
    for count in range(1, 5):
        parts = PARTS[:count]
        rows.append(Row(", ".join(parts), _aps(finetuned(config, source, parts), "box")))
    return [Row(row.name, {name: row.cells[name] for name in ("AP", "AP50", "AP75")}) for row in rows]


def threshold_rows(config: Config) -> list[Row]:
    """Thresholds of the pseudo labels (eq. 3), whose value the paper does not print; every label is stored once."""
    rows = []
    for place, threshold in enumerate((0.3, 0.4, 0.5, 0.6, 0.7), start=1):
        cells = {}
        if place in grid(config):
            source = warmup(replace(config, label=replace(config.label, threshold=threshold)))
            cells["warm-up entity AP"] = Cell(source, "box_agnostic")
            cells["finetuned det AP"] = Cell(finetuned(config, source), "box")
        rows.append(Row(str(threshold), cells))
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
}


def file_stem(table: int | str, profile: str) -> str:
    """`table3_demo` or `threshold_demo`: what the files of a table are called."""
    return f"{f'table{table}' if isinstance(table, int) else table}_{profile}"


def grid(config: Config) -> tuple[int, ...]:
    """Which of the five lengths, strengths and thresholds the profile runs (Tables 3 to 5, "threshold")."""
    return PROFILES[config.profile]["grid"]


def wants(rows: list[Row]) -> list[Want]:
    """Every run that the rows need, each once, after those that it starts from."""
    return wants_of(cell.want for row in rows for cell in row.cells.values())


def wants_of(asked: Iterable[Want]) -> list[Want]:
    """These and all that they start from, each once, sources first."""
    found: dict[tuple, Want] = {}
    for want in asked:
        for each in want.with_sources():
            found.setdefault(each.key, each)
    return sorted(found.values(), key=lambda want: ORDER.index(want.verb))


def variation(want: Want) -> str:
    """What tells a want from the others of its stage, in a few words."""
    config, source = want.config, want.source
    learned = f"{config.annotation}{' with classes' if config.class_specific else ''}, {config.augment.kind}"
    if want.verb == "train_labeler":
        return f"{learned}, {_length(config.labeler)}"
    if want.verb == "label":
        return f"{config.split} by {variation(source)}"
    if want.verb == "warm_up":
        return f"{learned}, {_length(config.warmup)} on labels above {config.label.threshold:g} of {variation(source)}"
    own = f"{config.target}, {config.augment.kind}, {_length(config.finetune)}"
    if source is None:
        return f"{own} and {_length(config.warmup)} more, from nothing"
    return f"{own}, {' '.join(want.parts)} from {variation(source)}"


def _length(train: TrainConfig) -> str:
    return f"{train.steps} steps" if train.steps else f"{train.epochs:g} epochs"


_FIELDS = {field.name for field in fields(Config)}
assert all(set(names) <= _FIELDS for names in DECISIVE.values())
