"""The stages for a shell: `python -m cassl_lib --help`."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from pathlib import Path

from cassl_lib.cli import labels, pool, table
from cassl_lib.config import PARTS, SPLITS, TRAINED_BY, Config
from cassl_lib.errors import ConfigError
from cassl_lib.profiles import PROFILES
from cassl_lib.report import readme, report
from cassl_lib.resolve import describe, from_json, resolve, why_profile
from cassl_lib.tools.plan import check, estimate


def main(arguments: list[str] | None = None) -> int:
    """Parse and obey; errors a user can act on are printed without a traceback."""
    from cassl_lib.errors import DataError, MissingRun, PseudoLabelError, SceneError, WeightsError

    parsed = _parser().parse_args(arguments)
    try:
        return parsed.act(parsed) or 0
    except (ConfigError, DataError, MissingRun, PseudoLabelError, SceneError, WeightsError) as error:
        # Of an error in a loading process the loader makes a text that ends in its traceback, and that in the message.
        own = str(error).rpartition(f"{type(error).__name__}: ")[2].strip()
        print(f"error: {own}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, a folder where a file is asked for, no permission
        print(f"error: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:

    parser = argparse.ArgumentParser(prog="python -m cassl_lib", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, act, help: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=help)
        added.set_defaults(act=act)
        if act not in (_report, _bench, _bench_store):
            _config_options(added)
        return added

    run = verb("run", _run, "run a stage: train_labeler, label, warm_up or finetune")
    run.add_argument("verb", metavar="STAGE", choices=("train_labeler", "label", "warm_up", "finetune"))
    run.add_argument("--start", default="warmup", choices=("warmup", "labeler", "scratch"), help="of finetune")
    run.add_argument("--input", metavar="RUN", help="the finished run to start from, instead of what the options mean")
    run.add_argument("--parts", nargs="+", default=PARTS[:3], choices=PARTS, help="of finetune: what is copied")
    run.add_argument("--devices", type=int, default=1, help="processes; more than one starts torchrun")
    table.add_options(verb("table", _table, "a table of the paper: what it needs, making it, its numbers"))
    labels.add_verbs(verbs)
    pool.add_verb(verbs)
    plan = verb("plan", _plan, "hours, disk and labels of every stage, from a short measurement on this machine")
    plan.add_argument("--devices", type=int, default=1, help="processes, each on a device like the one measured")
    plan.add_argument("--stage", dest="verb", choices=tuple(TRAINED_BY), default="", help="the stage --epochs is of")
    plan.add_argument("--check", action="store_true", help="make the chain as well, and compare: takes its whole time")
    plan.add_argument("--out", type=Path, help="keep the estimate, or the comparison, as JSON")
    verb("show", _show, "print the resolved configuration")
    scenes = verb("scenes", _scenes, "write the embedded scenes of a profile")
    scenes.add_argument("--verify", action="store_true", help="compare what is on disk with its recorded hashes")
    summary = verb("summary", _summary, "the chain's numbers as a table, and as runs/summary.json")
    summary.add_argument("--record", action="store_true", help="keep them under reports/results/ too")
    regime = verb("regime", _regime, "the operating point of a profile, on tuning scenes: labeler, baseline, (G,A)")
    regime.add_argument("--jobs", type=int, default=1, help="runs side by side on this machine")
    regime.add_argument("--record", action="store_true", help="keep the numbers under reports/results/")
    verb("report", _report, "renew README, reports/report.md, its HTML, CSVs and figures from reports/results/")
    bench = verb("bench", _bench, "seconds and memory of a training step and of detection")
    bench.add_argument("--device", default="cpu", help="cpu or cuda (bf16)")
    bench.add_argument(
        "--sizes", nargs="+", default=["320", "512"], metavar="SIDE", help="SIDE or HEIGHTxWIDTH, pixels"
    )
    bench.add_argument("--batch", type=int, default=2)
    bench.add_argument("--threads", type=int, default=2, help="of the CPU")
    bench.add_argument("--backbones", nargs="+", default=["resnet50"], choices=("resnet50", "swin_tiny"))
    bench.add_argument("--steps", type=int, default=9, help="measured after three that are not")
    bench.add_argument("--out", type=Path, help="keep the numbers as JSON")
    store = verb("bench-store", _bench_store, "a synthetic store of pseudo labels at full size: times and memory")
    store.add_argument("--images", type=int, default=3_660_000)
    store.add_argument("--labels", type=int, default=9, help="an image")
    store.add_argument("--workers", type=int, default=2, help="processes that load training images")
    store.add_argument("--folder", type=Path, required=True, help="of the store; about 3 KB an image are needed")
    store.add_argument("--out", type=Path, help="keep the numbers as JSON")
    return parser


def _config_options(parser: argparse.ArgumentParser) -> None:
    """The parameters of `resolve` as options; a JSON written by a run replaces them all."""
    parser.add_argument("--config", type=Path, help="a config.json, as runs write it; instead of the options below")
    choices = {"profile": ("auto", *PROFILES), "split": SPLITS}
    kinds = {"seed": int, "epochs": float, "size": int, "threshold": float, "batch_size": int}
    for name, parameter in inspect.signature(resolve).parameters.items():
        option = f"--{name.replace('_', '-')}"
        if name == "stage":  # said by the verb
            continue
        if name in ("masks", "overlap", "rescore", "class_specific"):
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=parameter.default)
        else:
            kind = kinds.get(name, str)
            parser.add_argument(option, type=kind, choices=choices.get(name), default=parameter.default)


def _config(parsed: argparse.Namespace) -> Config:
    if parsed.config:
        try:
            return from_json(json.loads(parsed.config.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"--config {parsed.config} cannot be read ({error!r}); give a run's config.json"
            ) from error
    values = {name: getattr(parsed, name) for name in inspect.signature(resolve).parameters if name != "stage"}
    return resolve(**values, stage=TRAINED_BY.get(getattr(parsed, "verb", "")))


def _run(parsed: argparse.Namespace) -> int | None:
    from cassl_lib.runs import find_run
    from cassl_lib.stages import launch
    from cassl_lib.training import engine

    with engine.processes():
        try:
            source = find_run(parsed.input) if parsed.input else None
            how = {"start": parsed.start, "source": source, "parts": tuple(parsed.parts)}
            run = launch.run_stage(parsed.verb, _config(parsed), devices=parsed.devices, **how)
        except launch.LaunchError as error:
            print(f"error: {str(error).splitlines()[0]} their messages are above", file=sys.stderr)
            return 2
        if engine.rank_and_world()[0] == 0:
            print(run.folder)
            print(json.dumps(run.result["metrics"], indent=1))


def _plan(parsed: argparse.Namespace) -> None:

    config = _config(parsed)
    if parsed.check and parsed.devices > 1:
        raise ConfigError(f"--devices {parsed.devices}: --check runs the stages in this process, on one device")
    if parsed.check:
        compared = check.check(config)
        print(check.table(compared))
        content = check.to_json(config, compared)
    else:
        found = estimate.estimate(config, devices=parsed.devices)
        print(estimate.table(found))
        content = found.to_json()
    if parsed.out:
        parsed.out.write_text(json.dumps(content, indent=1) + "\n")


def _table(parsed: argparse.Namespace) -> int:
    from cassl_lib.cli.table import act

    return act(parsed, _config(parsed))


def _show(parsed: argparse.Namespace) -> None:
    if not parsed.config:
        print(why_profile(parsed.profile))
    print(describe(_config(parsed)))


def _scenes(parsed: argparse.Namespace) -> None:
    from cassl_lib.data import datasets, scenes

    config = _config(parsed)
    if not config.scenes and config.labeled != "scenes":
        raise ConfigError(f"profile {config.profile} has no scenes; use smoke, demo or gpu")
    datasets.scene_files(config, ("train", "val", "tune", *scenes.SPLITS[config.split]))
    root = datasets.scene_folder(config)
    if parsed.verify:
        scenes.verify(root)
    print(root)


def _summary(parsed: argparse.Namespace) -> None:
    from cassl_lib import paths
    from cassl_lib.report import pictures
    from cassl_lib.tables.summary import summarize, table

    config = _config(parsed)
    numbers, file = summarize(config)
    print(table(numbers))
    print(file)
    if parsed.record:
        print(readme.record(config, numbers))
    gathered = pictures.gather(config)
    if parsed.record:
        print(readme.record(config, gathered, "pictures"))
    _print_lines(pictures.save(pictures.draw(gathered), paths.runs() / "pictures"))


def _regime(parsed: argparse.Namespace) -> None:
    from cassl_lib.files import write_atomically
    from cassl_lib.tables import operating_point

    config = _config(parsed)
    found = operating_point.look(config, jobs=parsed.jobs)
    print(operating_point.text(found))
    if parsed.record:
        file = readme.RESULTS / f"regime_{config.profile}_seed{config.seed}.json"
        write_atomically(file, (json.dumps(found, indent=1) + "\n").encode())
        print(file)


def _report(parsed: argparse.Namespace) -> None:
    from cassl_lib.report.readme import README, update_readme

    update_readme()
    _print_lines([README, *report.renew()])


def _bench(parsed: argparse.Namespace) -> None:
    from cassl_lib.runs import environment
    from cassl_lib.tools.bench_detector import bench

    settings = {name: value for name, value in vars(parsed).items() if name not in ("act", "out")}
    found = bench(**settings)
    if parsed.out:
        parsed.out.write_text(json.dumps({"environment": environment(), "measured": found}, indent=1) + "\n")


def _bench_store(parsed: argparse.Namespace) -> None:
    from cassl_lib.runs import environment
    from cassl_lib.tools.bench_store import bench_store

    settings = {name: getattr(parsed, name) for name in ("images", "labels", "folder", "workers")}
    found = bench_store(**settings)
    if parsed.out:
        parsed.out.write_text(json.dumps({"environment": environment(), "measured": found}, indent=1) + "\n")


def _print_lines(values: list) -> None:
    print("\n".join(str(value) for value in values))


if __name__ == "__main__":
    sys.exit(main())
