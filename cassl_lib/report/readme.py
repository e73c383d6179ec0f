"""Tracked results, and the README's table of them: `summary --record` adds one, `report` renews the table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

from cassl_lib import paths
from cassl_lib.config import Config
from cassl_lib.files import write_atomically
from cassl_lib.paper import IMAGES
from cassl_lib.resolve import to_json
from cassl_lib.tools.bench_detector import PUBLIC, side

RESULTS = paths.REPOSITORY / "reports" / "results"
README = paths.REPOSITORY / "README.md"
NOTHING = "Nothing has been recorded yet."
ROWS = (  # key of the summary, what the table calls it
    ("labeler_agnostic_ap", "pseudo labeler, class-agnostic box AP"),
    ("labeler_agnostic_ap75", "pseudo labeler, class-agnostic box AP75"),
    ("warmup_agnostic_ap", "warmed-up detector, class-agnostic box AP"),
    ("warmup_agnostic_ap75", "warmed-up detector, class-agnostic box AP75"),
    ("baseline_ap", "baseline without warm-up, box AP"),
    ("objects_ga_ap", "finetuned from the labeler, Objects (G,A), box AP"),
    ("cassl_ap", "CA-SSL, Objects (P,A), box AP"),
    ("baseline_mask_ap", "baseline, mask AP"),
    ("objects_ga_mask_ap", "Objects (G,A), mask AP"),
    ("cassl_mask_ap", "CA-SSL, mask AP"),
    ("pseudo_precision", "pseudo labels, precision at IoU 0.5"),
    ("pseudo_recall", "pseudo labels, recall at IoU 0.5"),
    ("pseudo_recall_75", "pseudo labels, recall at IoU 0.75"),
    ("pseudo_recall_unnamed", "pseudo labels, recall on kinds no label names"),
)


def record(config: Config, summary: dict, kind: str = "chain") -> Path:
    """Keep a summary under `reports/results/`, with its whole configuration."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    choices = (config.annotation, config.target, config.crowd)
    odd = [choice for choice in choices if choice not in ("objects", "instances", "background")]
    file = RESULTS / f"{'_'.join([kind, config.profile, config.split, *odd])}_seed{config.seed}.json"
    write_atomically(file, (json.dumps(summary | {"config": to_json(config)}, indent=1) + "\n").encode())
    return file


def chains(profile: str, split: str, kind: str = "chain") -> list[dict]:
    """The tracked summaries of a profile and split, by seed."""
    files = sorted(RESULTS.glob(f"{kind}_{profile}_{split}_seed*.json"))
    return sorted((json.loads(file.read_text()) for file in files), key=lambda found: found["seed"])


def chain_table(found: list[dict]) -> str:
    """A Markdown table: a row a number, a column a seed, then mean and standard deviation, all times 100."""
    seeds = [str(chain["seed"]) for chain in found]
    lines = ["| | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean | spread |"]
    lines.append("|---|" + "---:|" * (len(seeds) + 2))
    for key, name in ROWS:
        values = [100 * chain[key] for chain in found if chain[key] is not None]
        if len(values) == len(found):
            cells = [*values, statistics.mean(values), statistics.stdev(values)]
            lines.append(f"| {name} | " + " | ".join(f"{value:.1f}" for value in cells) + " |")
    errors = [chain["pseudo_edge_errors"] for chain in found if chain["pseudo_edge_errors"]]
    for edge in ("left", "top", "right", "bottom") if errors else ():
        values = [error[edge] for error in errors]
        cells = [*values, statistics.mean(values), statistics.stdev(values)]
        lines.append(f"| pseudo boxes, mean error of the {edge} edge, pixels | ")
        lines[-1] += " | ".join(f"{value:+.2f}" for value in cells[:-1]) + f" | {cells[-1]:.2f} |"
    return "\n".join(lines)


def section(profile: str = "demo", split: str = "tiny") -> str:
    """The README's results: where they come from, and the table."""
    found = chains(profile, split)
    if len(found) < 2:
        return NOTHING
    places = sorted({f"{c['environment']['device']}, torch {c['environment']['torch']}" for c in found})
    dates = sorted({c["environment"]["date"] for c in found})
    return (
        f"Profile {profile}, split {split}, {len(found)} seeds of the whole chain; AP x 100 on the validation scenes; "
        f"spread is the standard deviation over seeds.\nMade on {'; '.join(places)}, {', '.join(dates)}; "
        f"the files are `reports/results/chain_{profile}_{split}_seed*.json`.\n\n{chain_table(found)}"
    )


def speed() -> str:
    """The README's table of `bench` on a CPU, beside the public CondInst's seconds and memory."""
    file = RESULTS / "bench_cpu.json"
    if not file.exists():
        return NOTHING
    found = json.loads(file.read_text())
    place = found["environment"]
    lines = [
        f"Batch of 2, ResNet-50, 80 classes, 2 CPU threads, torch {place['torch']}, {place['date']} "
        f"(`reports/results/{file.name}`).",
        "",
        "| | pixels | seconds | public | peak GB | of it libraries | public |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for case in (case for case in found["measured"] if (case["task"], side(case["size"])) in PUBLIC):
        seconds, memory = PUBLIC[case["task"], side(case["size"])]
        name = {"train": "training step", "detect": "detection with masks"}[case["task"]]
        lines.append(
            f"| {name} | {case['size']} | {case['seconds']:.2f} | {seconds:.2f} | {case['peak_gb']:.2f} "
            f"| {case['imports_gb']:.2f} | {f'{memory:.2f}' if memory else ''} |"
        )
    return "\n".join(lines)


def store() -> str:
    """The README's table of `bench-store`: a column a store, the smallest first."""
    found = sorted(map(_read, RESULTS.glob("store_*.json")), key=lambda each: each["measured"]["images"])
    if not found:
        return NOTHING
    place, all_measured = found[-1]["environment"], [each["measured"] for each in found]
    rows = {
        "labels": lambda m: f"{m['labels']:,}",
        "GB on disk": lambda m: f"{m['bytes'] / 1e9:.2f}",
        "written, images a second": lambda m: f"{m['written'] / m['write_seconds']:,.0f}" if m["written"] else "",
        "opened, milliseconds": lambda m: f"{1000 * m['open']['seconds']:.0f}",
        "own memory of a process that has it open, MB": lambda m: f"{m['open']['own_mb']:.1f}",
        "the same after 40,000 random rows, MB": lambda m: f"{m['read']['own_mb']:.1f}",
        "a random row, median microseconds": lambda m: f"{m['read']['second_us']:.0f}",
        "the same in a first pass, which opens the shards": lambda m: f"{m['read']['first_us']:.0f}",
        "counts at five thresholds, seconds": lambda m: f"{m['statistics']['seconds']:.1f}",
        "all checksums, seconds": lambda m: f"{m['verify']['seconds']:.1f}",
        "training from it, own memory of the trainer, MB": lambda m: f"{m['train']['own_mb'][0]:,}",
        "the same of each loading process, MB": lambda m: f"{max(m['train']['own_mb'][1:]):,}",
    }
    heads = " | ".join(f"{m['images']:,} images" for m in all_measured)
    lines = [
        f"Made on {place['device']}, {place['date']} (`reports/results/store_*.json`); memory is what the page cache "
        "cannot give back.",
        "",
        f"| | {heads} |",
        "|---|" + "---:|" * len(found),
    ]
    lines += [f"| {name} | " + " | ".join(value(m) for m in all_measured) + " |" for name, value in rows.items()]
    return "\n".join(lines)


def plan() -> str:
    """The README's table of `plan --check`, each split that was checked beside the others."""
    found = sorted(map(_read, RESULTS.glob("plan_check_*.json")), key=lambda each: IMAGES[each["split"]])
    if not found:
        return NOTHING
    place = found[0]["environment"]
    lines = [
        f"Profile {found[0]['profile']}, on {place['device']}, {place['date']} (`reports/results/plan_check_*.json`).",
        "",
        "| " + "".join(f"| split {each['split']}, planned | real | off " for each in found) + "|",
        "|---|" + "---:|---:|---:|" * len(found),
    ]
    for rows in zip(*(each["rows"] for each in found), strict=True):
        cells = ""
        for row in rows:
            off = f"{row['planned'] / row['real'] - 1:+.0%}" if row["real"] else ""
            cells += f" {row['planned']:,.0f} | {row['real']:,.0f} | {off} |"
        lines.append(f"| {rows[0]['name']} |{cells}")
    return "\n".join(lines)


def _read(file: Path) -> dict:
    return json.loads(file.read_text())


GENERATED = {
    "results": section,
    "plan": plan,
    "store": store,
    "speed": speed,
}  # name of the markers in the README: what stands between them


def update_readme() -> None:
    """Renew what stands between the README's markers."""
    renew(README, GENERATED)


def renew(file: Path, generated: Mapping[str, Callable[[], str]]) -> None:
    """Renew what stands between a file's markers; what is written by hand stays."""
    text = file.read_text()
    for name, make in generated.items():
        begin, end = markers(name)
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
            raise ValueError(f"{file}: {begin} and {end} must be there, in this order and once; nothing was changed")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{make()}\n{end}{rest.partition(end)[2]}"
    write_atomically(file, text.encode())


def markers(name: str) -> tuple[str, str]:
    return f"<!-- {name} -->", f"<!-- end of {name} -->"
