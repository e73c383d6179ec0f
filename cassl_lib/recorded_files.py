"""What the files under `reports/results/` hold, by the first word of their names; read with a check of every field."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta

from cassl_lib import typed_json
from cassl_lib.errors import DataError

Share = Annotated[float, Meta(ge=-1, le=1)]  # AP and the like; a difference may be negative
Count = Annotated[int, Meta(ge=0)]
Length = Annotated[str, Meta(pattern=r"^\d+( steps)?$|^[\d.]+ epochs$")]  # in words where there is no run yet
Amount = Annotated[float, Meta(ge=0)]
BySeed = dict[str, Share | None]


class Place(TypedDict):
    """Where and when something was measured."""

    device: str
    date: str
    commit: NotRequired[str]


class Environment(Place):
    """The same with the version of torch."""

    torch: str


class UsedRun(TypedDict):
    """A run of a table."""

    stage: str
    what: str
    seconds: Amount
    device: str
    date: str
    commit: NotRequired[str]
    labels: NotRequired[dict[str, float | None]]


class Lengths(TypedDict):
    """A cell that several lengths of training compete for."""

    steps: dict[Length, BySeed]
    chosen: dict[str, Annotated[str, Meta(pattern=r"^\d+$")] | None]


class Table(TypedDict):
    """A table of the paper, see `runner.collect`."""

    table: int | str
    profile: str
    seeds: Annotated[list[Count], Meta(min_length=1)]
    rows: dict[str, dict[str, BySeed]]
    runs: dict[str, dict[str, UsedRun]]
    lengths: NotRequired[dict[str, Lengths]]


class Section(TypedDict):
    steps: Count


class Config(TypedDict):
    """What is read of a configuration."""

    finetune: Section


class Chain(TypedDict):
    """The summary of a chain, see `summary.summarize`."""

    profile: str
    split: str
    seed: Count
    labeler_agnostic_ap: Share | None
    labeler_agnostic_ap75: Share | None
    warmup_agnostic_ap: Share | None
    warmup_agnostic_ap75: Share | None
    baseline_ap: Share
    baseline_steps: Count
    baseline_by_steps: dict[str, Share | None]
    objects_ga_ap: Share
    cassl_ap: Share
    baseline_mask_ap: Share | None
    objects_ga_mask_ap: Share | None
    cassl_mask_ap: Share | None
    pseudo_labels: NotRequired[Count]
    pseudo_threshold: Share
    pseudo_precision: Share | None
    pseudo_recall: Share | None
    pseudo_recall_75: Share | None
    pseudo_recall_unnamed: Share | None
    pseudo_edge_errors: dict[str, float | None] | None
    seconds: NotRequired[Amount]
    environment: Environment
    config: NotRequired[Config]


class Instances(TypedDict):
    """What a stage says of an image."""

    boxes: list[Annotated[list[float], Meta(min_length=4, max_length=4)]]
    scores: NotRequired[list[Share]]
    labels: NotRequired[list[Annotated[float, Meta(ge=-1)]]]  # -1 is a kind without a class
    size: NotRequired[Annotated[list[Annotated[int, Meta(ge=1, le=8192)]], Meta(min_length=2, max_length=2)]]
    masks: NotRequired[list[str]]


class Picture(TypedDict):
    """The same images in rows."""

    images: list[str]
    rows: dict[str, list[Instances]]
    scenes: dict[str, Any] | None


class Pictures(TypedDict):
    """What `gather` makes."""

    classes: Annotated[list[str], Meta(min_length=1)]
    pictures: dict[str, Picture]
    profile: str
    split: str
    seed: Count


class PlanRow(TypedDict):
    name: str
    planned: Amount
    real: Amount


class PlanCheck(TypedDict):
    profile: str
    split: str
    rows: list[PlanRow]
    environment: Place


class Case(TypedDict):
    task: str
    size: str
    seconds: Amount
    peak_gb: Amount
    imports_gb: Amount


class Bench(TypedDict):
    environment: Environment
    measured: list[Case]


class MeasuredStore(TypedDict):
    images: Count
    labels: Count
    bytes: Count
    written: Count
    write_seconds: Amount
    open: dict[str, Amount]
    read: dict[str, Amount]
    statistics: dict[str, Amount]
    verify: dict[str, Amount]
    train: dict[str, Amount | Annotated[list[Amount], Meta(min_length=2)]]


class StoreBench(TypedDict):
    environment: Place
    measured: MeasuredStore


KINDS = {
    "chain": Chain,
    "pictures": Pictures,
    "plan": PlanCheck,
    "bench": Bench,
    "store": StoreBench,
    "operating": dict[str, Any],
}
REMEDY = "restore it, or delete it and record it again"


def read(file: Path) -> dict:
    """The content of a result file, of the kind that its name says: a table unless it begins with one of `KINDS`.

    Raises:
        DataError: it is damaged; the message names the file and the place.
    """
    content = typed_json.read(file, KINDS.get(file.stem.split("_")[0], Table), REMEDY, finite=True)
    if "pictures" in content:
        _check_pictures(content, file)
    if "table" in content and not file.stem.startswith((f"table{content['table']}_", f"{content['table']}_")):
        raise DataError(f"{file}: table={content['table']!r} is not the one of its name; {REMEDY}")
    return content


def _check_pictures(content: dict, file: Path) -> None:
    """Raise DataError unless every row has instances for each image, as many of each kind, with known classes."""
    for name, picture in content["pictures"].items():
        for row, images in picture["rows"].items():
            place = f"{file}: pictures.{name}.rows.{row}"
            if len(images) != len(picture["images"]):
                raise DataError(f"{place}: {len(images)} entries for {len(picture['images'])} images; {REMEDY}")
            for number, each in enumerate(images):
                lengths = {len(each[part]) for part in ("boxes", "scores", "labels", "masks") if part in each}
                if len(lengths) > 1:
                    raise DataError(f"{place}[{number}]: boxes, scores, labels and masks differ in number; {REMEDY}")
                if max(each.get("labels", ()), default=0) >= len(content["classes"]):
                    raise DataError(f"{place}[{number}]: a label is not one of the classes; {REMEDY}")
