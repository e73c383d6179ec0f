"""The shell: `cassl VERB`, or `python -m cassl_lib VERB`."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path

from cassl_lib import log_to_stderr, paths
from cassl_lib.cli import chain, data, labels, pool, table
from cassl_lib.cli.options import add_config_options, check_numbers, config_of
from cassl_lib.config import PARTS
from cassl_lib.errors import CasslError, ConfigError, Stopped
from cassl_lib.files import write_atomically
from cassl_lib.resolve import why_profile
from cassl_lib.stages.registry import SCRATCH, STAGES

LABELS = ("label", "labels", "pool", "import-labels")
READS_IMAGES = ("run", "chain", "table", "operating-point", "summary", "plan", *LABELS)


def main(arguments: list[str] | None = None) -> int:
    """Parse and act; errors that a person can act on are printed without a traceback.

    Returns:
        The exit status: 0; 1 if some runs of a table failed; 2 after an error; 3 if the deadline came before the work
        was done; 130 after an interrupt.
    """
    parsed = _parser().parse_args(arguments)
    log_to_stderr()
    if getattr(parsed, "allow_outside", False):
        os.environ[paths.ALLOW_OUTSIDE] = "1"  # for the processes that it starts too
    try:
        check_numbers(parsed)
        return parsed.act(parsed) or 0
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 3
    except CasslError as error:
        # DataLoader re-raises worker errors with the worker's traceback in the message; keep only the last part.
        message = str(error).rpartition(f"{type(error).__name__}: ")[2].strip()
        print(f"error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; rerun the same command to resume", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, a folder where a file is needed, no permission
        print(f"error: {error.filename or 'system'}: {error.strerror or error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cassl", description="CA-SSL from the shell.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, act, help: str, *, configured: bool = True) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=help, description=help)
        added.set_defaults(act=act)
        if configured:
            add_config_options(added, stage=name != "run")  # whose argument is the stage
        return added

    run = verb("run", _run, f"run a stage: {', '.join(STAGES)}")
    run.add_argument("stage", metavar="STAGE", choices=tuple(STAGES), help=f"one of {', '.join(STAGES)}")
    starts = (*STAGES["finetune"].starts_from, SCRATCH)
    run.add_argument("--start", choices=starts, help="of finetune: the stage to start from (warmup)")
    run.add_argument("--input", metavar="RUN", help="a finished run to start from instead of the usual one")
    run.add_argument("--parts", nargs="+", default=PARTS[:3], choices=PARTS, help="of finetune: what is copied")
    run.add_argument("--devices", type=int, default=1, help="processes; more than one starts torchrun")

    table.add_options(verb("table", table.act, "a table of the paper: its runs, making them, its numbers"))
    labels.add_verbs(verbs)
    pool.add_verb(verbs)

    plan = verb("plan", _plan, "hours, disk and labels of every stage, from a short measurement on this machine")
    plan.add_argument("--devices", type=int, default=1, help="processes, each on a device like the one measured")
    plan.add_argument("--check", action="store_true", help="run the chain too, and compare; takes its whole time")
    plan.add_argument("--out", type=Path, help="write the plan, or the comparison, as JSON")

    verb("show", _show, "print the resolved configuration")
    verb("data", data.act, "the data sets that a configuration needs: what is there, what to download, where to put it")
    scenes = verb("scenes", _scenes, "write the embedded scenes of a profile")
    scenes.add_argument("--verify", action="store_true", help="compare the files with their recorded hashes")
    chain.add_verbs(verb)
    point = verb("operating-point", _operating_point, "check a profile's regime on tuning scenes")
    point.add_argument("--jobs", type=int, default=1, help="runs side by side on this machine")
    point.add_argument("--record", action="store_true", help="keep the numbers under reports/results/")
    verb("report", _report, "regenerate report, figures and tables from reports/results/", configured=False)
    _add_benchmarks(verb)
    for name in READS_IMAGES:
        verbs.choices[name].add_argument(
            "--allow-outside", action="store_true", help="read images whose listed names lead out of their folder"
        )
    return parser


def _add_benchmarks(verb) -> None:
    bench = verb("bench", _bench, "seconds and memory of a training step and of detection", configured=False)
    bench.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="cpu or cuda (bf16)")
    bench.add_argument(
        "--sizes", nargs="+", default=["320", "512"], metavar="SIDE", help="SIDE or HEIGHTxWIDTH, pixels"
    )
    bench.add_argument("--batch", type=int, default=2, help="images per step")
    bench.add_argument("--threads", type=int, default=2, help="of the CPU")
    bench.add_argument(
        "--backbones", nargs="+", default=["resnet50"], choices=("resnet50", "swin_tiny"), help="what is measured"
    )
    bench.add_argument("--steps", type=int, default=9, help="measured steps, after three warm-up steps")
    bench.add_argument("--out", type=Path, help="write the numbers as JSON")
    store = verb("bench-store", _bench_store, "times and memory of a synthetic pseudo-label store", configured=False)
    store.add_argument("--images", type=int, default=3_660_000, help="in the store")
    store.add_argument("--labels", type=int, default=9, help="per image")
    store.add_argument("--workers", type=int, default=2, help="processes that load training images")
    store.add_argument("--folder", type=Path, required=True, help="of the store; needs about 3 kB per image")
    store.add_argument("--out", type=Path, help="write the numbers as JSON")


def _run(parsed: argparse.Namespace) -> int | None:
    from cassl_lib import deadline
    from cassl_lib.errors import LaunchError
    from cassl_lib.runs import find_run
    from cassl_lib.stages import graph, requests
    from cassl_lib.training.distributed import processes, rank_and_world

    with processes():
        try:
            run = find_run(parsed.input) if parsed.input else None
            request = requests.request(
                parsed.stage, config_of(parsed), start=parsed.start, run=run, parts=tuple(parsed.parts)
            )
            run = graph.obtain(request, devices=parsed.devices)
        except LaunchError as error:
            if deadline.passed():  # torchrun reports every status of its processes as 1
                raise Stopped("stopped at the deadline; rerun the same command to resume") from error
            print(f"error: {str(error).splitlines()[0]} their messages are above", file=sys.stderr)
            return 2
        if rank_and_world()[0] == 0:
            print(run.folder)
            print(json.dumps(run.result["metrics"], indent=1))


def _plan(parsed: argparse.Namespace) -> None:
    from cassl_lib.tools.plan import check, cost, estimate

    config = config_of(parsed)
    if parsed.check and parsed.devices > 1:
        raise ConfigError(f"--devices {parsed.devices}: --check runs the stages in this process, on one device")
    if parsed.check:
        compared = check.check(config)
        print(check.table(compared))
        content = check.to_json(config, compared)
    else:
        plan = estimate.estimate(config, devices=parsed.devices)
        print(cost.table(plan))
        content = plan.to_json()
    if parsed.out:
        _write_json(content, parsed.out)


def _show(parsed: argparse.Namespace) -> None:
    from cassl_lib.data import datasets, layout

    if not parsed.config:
        print(why_profile(parsed.profile))
    config = config_of(parsed)
    print(config)
    if words := layout.missing(datasets.needed(config)):
        print(words)


def _scenes(parsed: argparse.Namespace) -> None:
    from cassl_lib.data import datasets, scenes

    config = config_of(parsed)
    if not config.scenes and config.labeled != "scenes":
        raise ConfigError(f"profile {config.profile} has no scenes; use smoke, demo or gpu")
    datasets.scene_files(config, ("train", "val", "tune", *scenes.SPLITS[config.split]))
    root = datasets.scene_folder(config)
    if parsed.verify:
        scenes.verify(root)
    print(root)


def _operating_point(parsed: argparse.Namespace) -> None:
    from cassl_lib.tables import operating_point, results

    config = config_of(parsed)
    measured = operating_point.measure(config, jobs=parsed.jobs)
    print(operating_point.text(measured))
    if parsed.record:
        print(results.write(measured, f"operating_point_{config.profile}_seed{config.seed}"))


def _report(parsed: argparse.Namespace) -> None:
    from cassl_lib.report import report

    for file in report.renew():
        print(file)


def _bench(parsed: argparse.Namespace) -> None:
    from cassl_lib.tools.bench_detector import bench

    for size in parsed.sizes:
        if not re.fullmatch(r"\d{2,4}(x\d{2,4})?", size):
            raise ConfigError(f"--sizes {size!r} is not SIDE or HEIGHTxWIDTH in pixels, such as 320 or 800x1333")
    if not 1 <= parsed.steps <= 10_000:
        raise ConfigError(f"--steps {parsed.steps} is out of range; use 1 to 10,000")
    measured = bench(
        device=parsed.device,
        sizes=parsed.sizes,
        batch=parsed.batch,
        threads=parsed.threads,
        backbones=parsed.backbones,
        steps=parsed.steps,
    )
    _write_measured(measured, parsed.out)


def _bench_store(parsed: argparse.Namespace) -> None:
    from cassl_lib.tools.bench_store import bench_store

    measured = bench_store(images=parsed.images, labels=parsed.labels, folder=parsed.folder, workers=parsed.workers)
    _write_measured(measured, parsed.out)


def _write_measured(measured, file: Path | None) -> None:
    from cassl_lib.runs import environment

    if file:
        _write_json({"environment": environment(), "measured": measured}, file)


def _write_json(content: dict, file: Path) -> None:
    """Write a file that `--out` names; it is whole or not there."""
    write_atomically(file, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
