"""SIGKILL at random moments, and what is left: `python tests/campaign/kills.py --kills 60`. Linux, about ten minutes.

Training, labeling with two processes, imports, makers of tables and torchrun are killed and started again, a few times
in a row, and then left alone to the end. Then every result has the bytes of one that was never disturbed, no process
is left behind after any kill, and no temporary file at the end. Not part of the test suite: what it finds depends on
the moment. Without the mends it is for, it fails.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

IN_A_ROW = 3  # kills before a run is left alone to the end
PATIENCE = 60  # seconds until a process that is left is an orphan
ADOPT = 36  # PR_SET_CHILD_SUBREAPER: orphans become this process's children, where they can be counted
SHARES = {"training": 5, "labeling": 5, "import": 6, "tables": 2, "torchrun": 2}  # of 20 kills

problems: list[str] = []


# ---- what is killed ----


def config():
    """The smoke profile with many checkpoints and small shards."""
    from cassl_lib.resolve import resolve

    smoke = resolve(profile="smoke")
    sections = {
        name: replace(getattr(smoke, name), steps=8, checkpoint_every=2, log_every=1)
        for name in ("pseudo_labeler", "warmup", "finetune")
    }
    labels = replace(smoke.pseudo_labels, keep=0.0, threshold=0.0, shard_size=2)
    return replace(smoke, pseudo_labels=labels, model=replace(smoke.model, score_threshold=0.003), **sections)


def train() -> None:
    from cassl_lib.stages import requests
    from cassl_lib.stages.graph import obtain

    obtain(requests.finetune(config()))  # after the three runs that it starts from


def label() -> None:
    from cassl_lib.data import datasets
    from cassl_lib.runs import find_run
    from cassl_lib.stages.pseudo_labels import label_into

    label_into(runs() / "store", find_run(os.environ["KILLS_LABELER"]), datasets.pool(config()), config())


def bring_in() -> None:
    from cassl_lib.labels.coco import from_coco

    from_coco(os.environ["KILLS_LABELS"], runs() / "store", shard_size=40)


def make_tables() -> None:
    from cassl_lib.stages import requests
    from cassl_lib.tables import runner

    wanted = [requests.pseudo_labeler(config()), requests.baseline(config())]
    runner.make(wanted, jobs=2)


def launch() -> None:
    from cassl_lib.stages import requests
    from cassl_lib.stages.graph import obtain

    obtain(requests.pseudo_labeler(config()), devices=2)


WORK: dict[str, tuple[Callable[[], None], int]] = {  # and how many processes do it together
    "training": (train, 1),
    "labeling": (label, 2),
    "import": (bring_in, 1),
    "tables": (make_tables, 1),
    "torchrun": (launch, 1),
}


def runs() -> Path:
    return Path(os.environ["CASSL_RUNS"])


def labels_file(root: Path) -> Path:
    """Labels of 2,000 images for the import."""
    draw = random.Random(1)
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 300, "width": 400} for n in range(2000)]
    boxes = [[draw.randrange(200), draw.randrange(150), 20 + n % 90, 30 + n % 70] for n in range(10_000)]
    entries = [{"id": n, "image_id": n % 2000, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)]
    file = root / "labels.json"
    file.write_text(json.dumps({"images": images, "annotations": entries, "categories": [{"id": 1, "name": "a"}]}))
    return file


# ---- killing ----


def start(work: Callable[[], None], folder: Path) -> int:
    """A forked process, which needs no time to import, that does the work with its messages in `folder`."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.environ["CASSL_RUNS"] = str(folder / "runs")
        output = os.open(folder / "messages.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(output, 1)
        os.dup2(output, 2)
        work()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def descendants() -> list[int]:
    """The running processes that this one, or a process that it started, has started; the dead ones are buried."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(") ")[2].split()
            parents[int(stat.parent.name)] = int(fields[1])
    found, new = [], {os.getpid()}
    while new := {pid for pid, parent in parents.items() if parent in new}:
        found += new
    return found


def wait_for_none(what: str) -> bool:
    """Whether no process is left; a line of `problems` names those that are, and they are killed."""
    deadline = time.monotonic() + PATIENCE
    while left := descendants():
        if time.monotonic() > deadline:
            problems.append(f"{what}: {len(left)} processes are left behind")
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return False
        time.sleep(0.05)
    return True


def to_the_end(name: str, folder: Path) -> float:
    """Do the work undisturbed; returns the seconds it took."""
    work, count = WORK[name]
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    for pid in [start(work, folder) for _ in range(count)]:
        if status := os.waitpid(pid, 0)[1]:
            problems.append(f"{name}: the last, undisturbed start ended with {status}, see {folder}/messages.txt")
    seconds = time.monotonic() - begun
    wait_for_none(name)
    return seconds


def killed(name: str, folder: Path, seconds: float, draw: random.Random) -> bool:
    """Start the work and kill one of its processes somewhere in the time it takes; False if it ended before."""
    work, count = WORK[name]
    folder.mkdir(parents=True, exist_ok=True)
    started = [start(work, folder) for _ in range(count)]
    time.sleep(draw.uniform(0.05, 0.9) * seconds)
    # One of torchrun's own processes as often as the one that started it
    alive = [pid for pid in descendants() if name == "torchrun" or pid in started]
    if not alive:
        return False
    victim = draw.choice(alive)
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    if name == "labeling" and draw.random() < 0.5:
        return True  # the other one goes on, beside those that are started next
    for pid in started if name == "labeling" else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for_none(f"{name}, after a kill")
    return True


# ---- what is left ----


def results(folder: Path) -> dict[str, object]:
    """Everything in a run store whose bytes must not depend on kills; entries of logs and results without times."""
    found: dict[str, object] = {}
    for path in sorted((folder / "runs").rglob("*")):
        name = str(path.relative_to(folder / "runs"))
        if path.name == "log.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = sorted(json.dumps({k: v for k, v in line.items() if k != "seconds"}) for line in lines)
        elif path.name == "result.json":
            timed = ("seconds", "environment")
            found[name] = {k: v for k, v in json.loads(path.read_text()).items() if k not in timed}
        elif path.suffix in (".safetensors", ".arrow", ".parquet") or path.parent.name == "store":
            found[name] = b"" if path.name.endswith(".lock") else path.read_bytes()
    return found


def strays(folder: Path) -> list[str]:
    patterns = (".*.tmp", "*.tmp", "*.partial", "checkpoint*", "best-*")
    return sorted(str(path.relative_to(folder)) for pattern in patterns for path in (folder / "runs").rglob(pattern))


def check(name: str, folder: Path, expected: dict[str, object]) -> None:
    """Compare what is left with what an undisturbed run leaves."""
    ended = results(folder)
    for file in sorted(expected.keys() ^ ended.keys()):
        problems.append(f"{name}: {folder / 'runs' / file} is only in one of the two")
    for file in expected.keys() & ended.keys():
        if expected[file] != ended[file]:
            problems.append(f"{name}: {folder / 'runs' / file} differs from an undisturbed run's")
    problems.extend(f"{name}: {folder / stray} is left" for stray in strays(folder))


def campaign(name: str, kills: int, root: Path, draw: random.Random) -> int:
    """Kill until there are enough; returns how many processes were killed."""
    seconds = to_the_end(name, root / name / "whole")
    expected, count = results(root / name / "whole"), 0
    if not expected:
        problems.append(f"{name}: the undisturbed run left nothing")
    for number in itertools.count():
        if count >= kills or number > 4 * kills:
            return count
        folder = root / name / str(number)
        in_this = 0
        while in_this < min(IN_A_ROW, kills - count) and killed(name, folder, seconds, draw):
            in_this += 1
        count += in_this
        to_the_end(name, folder)
        check(name, folder, expected)
        print(f"{name}: {count} kills, {len(problems)} problems", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=tuple(WORK), help="one kind of work")
    given = parser.parse_args()
    root, draw = Path(tempfile.mkdtemp(prefix="kills-")), random.Random(given.seed)
    print(f"results under {root}", flush=True)
    os.environ |= {"CASSL_PROFILE": "smoke", "CASSL_DATASETS": str(root / "datasets"), "OMP_NUM_THREADS": "1"}
    ctypes.CDLL(None, use_errno=True).prctl(ADOPT, 1, 0, 0, 0)
    # Import once, before all forks
    import torch

    import cassl_lib.stages.pseudo_labels
    import cassl_lib.tables.runner  # noqa: F401

    torch.set_num_threads(1)
    to_the_end("training", root / "labeler")  # draws the scenes too
    os.environ["KILLS_LABELER"] = str(next((root / "labeler" / "runs").glob("pseudo_labeler-*")))
    os.environ["KILLS_LABELS"] = str(labels_file(root))
    counts = Counter()
    for name in [given.only] if given.only else SHARES:
        share = given.kills if given.only else -(-given.kills * SHARES[name] // sum(SHARES.values()))
        counts[name] = campaign(name, share, root, draw)
    print(f"{counts.total()} kills: {', '.join(f'{count} of {name}' for name, count in counts.items())}")
    print("\n".join(problems) or "all results are those of undisturbed runs; no process and no temporary file is left")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
