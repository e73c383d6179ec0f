"""Generated tables of the README and of `docs/`: results, the paper's tables, plan, store and speed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cassl_lib import paths
from cassl_lib.paper import IMAGES
from cassl_lib.report.blocks import NOTHING, Block, Words
from cassl_lib.report.pictures import comparisons, recorded
from cassl_lib.report.tables import profiles
from cassl_lib.tables import compare, results
from cassl_lib.tables.compare import Cell, Layout
from cassl_lib.tools.bench_detector import PUBLIC, side

QUESTIONS: dict[int | str, str] = {
    1: "How large is the gap between ground truth and pseudo labels?",
    2: "Which data should the warm-up use?",
    3: "How long should the warm-up be?",
    4: "How do the lengths of warm-up and finetuning trade off?",
    5: "Does a stronger pseudo labeler lead to a stronger student?",
    6: "In which stage does strong augmentation help?",
    7: "Do more unlabeled images help?",
    8: "How does CA-SSL compare with other methods?",
    9: "Which parts of the warmed-up model should be kept?",
    10: "Does the warm-up transfer to other frameworks and tasks?",
    "threshold": "Which score threshold should pseudo labels have?",
    "shift": "What if the unlabeled images look different from the labeled ones?",
}


def paper_tables() -> Sequence[Block]:
    """The paper's tables: question, notebook, section of the report, result files, and what has been recorded."""
    names = ("table", "question", "notebook", "report", "results", "recorded")
    body = []
    for table, question in QUESTIONS.items():
        files = {profile: results.recorded(profile).get(table) for profile in profiles()}
        files = {profile: collected for profile, collected in files.items() if collected}
        report = f"reports/report.md#{anchor(compare.heading(table))}"
        body.append(
            (
                Cell(str(table)),
                Cell(question),
                _notebook(table),
                Cell("section", link=report) if table in compare.LAYOUTS else Cell(),
                _result_file(table, list(files)[-1:]),
                Cell(", ".join(map(_recorded, files.values())) or "not yet"),
            )
        )
    return [Layout("", (tuple(map(Cell, names)),), tuple(body))]


def anchor(heading: str) -> str:
    """The address of a heading within its page, on code hosts and in the HTML report."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _notebook(table: int | str) -> Cell:
    """A link to the notebook of a table, numbered 10 + table for the paper's; empty if there is none."""
    pattern = f"{10 + table}_table{table}_*.ipynb" if isinstance(table, int) else f"*_{table}*.ipynb"
    for file in sorted((paths.REPOSITORY / "notebooks").glob(pattern)):
        return Cell(file.stem[:2], link=f"notebooks/{file.name}")
    return Cell()


def _result_file(table: int | str, names: Sequence[str]) -> Cell:
    """A link to the results at the largest recorded profile; empty if there are none."""
    stems = [results.file_stem(table, profile) for profile in names]
    return Cell("JSON", link=f"reports/results/{stems[0]}.json") if stems else Cell()


def _recorded(collected: dict) -> str:
    count = len(collected["seeds"])
    return f"{count} {'seed' if count == 1 else 'seeds'} at {collected['profile']}"


def picture() -> Sequence[Block]:
    """The first images of the demo's pool with the detections of each stage; nothing without a recorded result."""
    return [replace(comparisons()[0], file="figures/stages.png")] if recorded() else []


def plan() -> Sequence[Block]:
    """`plan --check`: planned and measured cost of a chain, one group of columns per pool that was checked."""
    checks = sorted(_all("plan_check_*.json"), key=lambda each: IMAGES.get(each["split"], 0))
    if not checks:
        return NOTHING
    groups = [Cell(), *(Cell(f"pool {each['split']}", span=3) for each in checks)]
    names = [Cell(), *map(Cell, ("planned", "measured", "error") * len(checks))]
    body = []
    for rows in zip(*(each["rows"] for each in checks), strict=True):
        line = [rows[0]["name"]]
        for row in rows:
            error = f"{row['planned'] / row['real'] - 1:+.0%}" if row["real"] else ""
            line += [f"{row['planned']:,.0f}", f"{row['real']:,.0f}", error]
        body.append(tuple(map(Cell, line)))
    origin = _origin(checks[0]["environment"], f"Profile {checks[0]['profile']}, on", "plan_check_*.json")
    return [origin, Layout("", (tuple(groups), tuple(names)), tuple(body))]


def store() -> Sequence[Block]:
    """`bench-store`: one column per synthetic store, the smallest first."""
    stores = sorted(_all("store_*.json"), key=lambda each: each["measured"]["images"])
    if not stores:
        return NOTHING
    measured = [each["measured"] for each in stores]
    rows = {
        "labels": lambda m: f"{m['labels']:,}",
        "size on disk, GB": lambda m: f"{m['bytes'] / 1e9:.2f}",
        "writing, images per second": lambda m: f"{m['written'] / m['write_seconds']:,.0f}" if m["written"] else "",
        "opening, ms": lambda m: f"{1000 * m['open']['seconds']:.0f}",
        "private memory of a process with the store open, MB": lambda m: f"{m['open']['own_mb']:.1f}",
        "the same after 40,000 random rows, MB": lambda m: f"{m['read']['own_mb']:.1f}",
        "a random row, median, µs": lambda m: f"{m['read']['second_us']:.0f}",
        "the same in the first pass, which opens the shards, µs": lambda m: f"{m['read']['first_us']:.0f}",
        "label counts at five thresholds, s": lambda m: f"{m['statistics']['seconds']:.1f}",
        "verifying all checksums, s": lambda m: f"{m['verify']['seconds']:.1f}",
        "training: private memory of the trainer, MB": lambda m: f"{m['train']['own_mb'][0]:,}",
        "training: private memory of each loader process, MB": lambda m: f"{max(m['train']['own_mb'][1:]):,}",
    }
    names = ["", *(f"{each['images']:,} images" for each in measured)]
    body = [[name, *map(value, measured)] for name, value in rows.items()]
    origin = _origin(stores[-1]["environment"], "Measured on", "store_*.json")
    note = Words("Private memory excludes the page cache, which the system reclaims.")
    return [note, origin, compare.plain("", names, body)]


def speed() -> Sequence[Block]:
    """`bench` on a CPU beside the public CondInst: seconds, and peak memory."""
    benchmarks = _all("bench_cpu.json")
    if not benchmarks:
        return NOTHING
    place = benchmarks[0]["environment"]
    tasks = {"train": "training step", "detect": "detection with masks"}
    body = []
    for case in (case for case in benchmarks[0]["measured"] if (case["task"], side(case["size"])) in PUBLIC):
        seconds, memory = PUBLIC[case["task"], side(case["size"])]
        numbers = [f"{number:.2f}" for number in (case["seconds"], seconds, case["peak_gb"], case["imports_gb"])]
        body.append([tasks[case["task"]], case["size"], *numbers, f"{memory:.2f}" if memory else ""])
    names = ["", "pixels", "seconds", "public, seconds", "peak memory, GB", "of it, imported libraries, GB"]
    setting = "Batch of 2, ResNet-50, 80 classes, 2 CPU threads"
    origin = Words(f"{setting}, torch {place['torch']}, {place['date']}", "reports/results/bench_cpu.json")
    return [origin, compare.plain("", [*names, "public, peak memory, GB"], body)]


def _origin(place: dict, begin: str, files: str) -> Words:
    return Words(f"{begin} {place['device']}, {place['date']}", f"reports/results/{files}")


def _all(pattern: str) -> list[dict]:
    files: list[Path] = sorted(results.RESULTS.glob(pattern))
    return [results.read(file) for file in files]
