"""The shell: help, start-up, options, messages, and one line per error that the user can fix."""

import argparse
import inspect
import json
import os
import pkgutil
import subprocess
import sys
import tomllib
from dataclasses import replace

import pytest

from cassl_lib import paths
from cassl_lib.cli import options
from cassl_lib.cli.main import _parser, main
from cassl_lib.config import THRESHOLD
from cassl_lib.data import layout
from cassl_lib.errors import LaunchError
from cassl_lib.resolve import resolve, to_json
from cassl_lib.stages import graph, launch, requests


def test_help_names_every_verb_and_parameter(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    overview = capsys.readouterr().out
    assert all(verb in overview for verb in ("run", "show", "scenes", "summary", "operating-point"))
    with pytest.raises(SystemExit) as caught:
        main(["run", "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and "STAGE" in text
    parameters = {f"--{name.replace('_', '-')}" for name in inspect.signature(resolve).parameters} - {"--stage"}
    assert all(option in text for option in parameters | {"--no-masks", "--config", "--devices", "--start"})


def test_every_option_of_every_verb_is_explained():
    parser = _parser()
    verbs = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction)).choices
    unexplained = [(verb, action.dest) for verb, each in verbs.items() for action in each._actions if not action.help]
    assert unexplained == []


def test_the_help_of_a_parameter_is_its_description_in_resolve(capsys):
    described = options.descriptions()
    assert described.keys() == inspect.signature(resolve).parameters.keys()
    assert described["steps"] == "of `stage`, instead of epochs: as many whatever the number of images."
    assert all("\n" not in words and words.endswith(".") for words in described.values())
    with pytest.raises(SystemExit):
        main(["show", "--help"])
    shown = "".join(capsys.readouterr().out.split())
    assert all("".join(words.split()) in shown for words in described.values())


def test_help_does_not_import_torch():
    """Importing torch takes seconds."""
    script = """
import contextlib, sys
from cassl_lib.cli.main import main
for arguments in (["--help"], ["run", "--help"]):
    with contextlib.suppress(SystemExit):
        main(arguments)
print([name for name in ("torch", "torchvision", "timm", "matplotlib") if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=paths.REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("usage: cassl") == 2
    assert done.stderr == "[]\n"


def test_the_console_script_is_main():
    project = tomllib.loads((paths.REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"cassl": "cassl_lib.cli.main:main"}
    assert pkgutil.resolve_name(project["scripts"]["cassl"]) is main


def test_show_prints_the_settings_and_the_reason_for_the_profile(capsys):
    assert main(["show", "--seed", "3", "--size", "64", "--no-masks", "--threshold", "0.3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "profile smoke (from $CASSL_PROFILE): for tests; seconds"
    named = {line.split()[0]: line for line in lines[1:]}
    assert named["seed"].split() == ["seed", "3"] and "masks=False" in named["model"]
    assert "test_size=64" in named["augment"] and "threshold=0.3" in named["pseudo_labels"]


def test_a_config_file_replaces_all_options(tmp_path, capsys):
    config = resolve(profile="smoke", seed=7)
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    assert main(["show", "--config", str(tmp_path / "config.json")]) == 0
    from_file = capsys.readouterr().out
    assert main(["show", "--profile", "smoke", "--seed", "7"]) == 0
    assert capsys.readouterr().out.split("\n", 1)[1] == from_file  # all but the reason for the profile


def test_epochs_belong_to_the_stage_that_is_run(capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(graph, "obtain", lambda request, *, devices: seen.append(request) or 1 / 0)
    for stage in ("pseudo_labeler", "warmup", "finetune"):
        with pytest.raises(ZeroDivisionError):
            main(["run", stage, "--epochs", "2"])
        section = getattr(seen[-1].config, stage)
        assert seen[-1].stage == stage and section.epochs == 2 and section.steps == 0
        with pytest.raises(ZeroDivisionError):
            main(["run", stage, "--steps", "7", "--learning-rate", "3e-4"])
        trained = {name: getattr(seen[-1].config, name) for name in ("pseudo_labeler", "warmup", "finetune")}
        assert [name for name, each in trained.items() if (each.steps, each.learning_rate) == (7, 3e-4)] == [stage]
    assert main(["run", "pseudo_labels", "--epochs", "2"]) == 2
    assert "epochs=2.0 needs a stage" in capsys.readouterr().err


def test_other_verbs_name_the_stage_of_an_option(capsys):
    assert main(["show", "--stage", "warmup", "--steps", "9", "--weight-decay", "0.1"]) == 0
    named = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    shown = {name: "steps=9" in line and "weight_decay=0.1" in line for name, line in named.items()}
    assert [name for name, each in shown.items() if each] == ["warmup"]


def test_a_store_is_inspected_at_the_usual_threshold():
    assert _parser().parse_args(["labels", "STORE"]).threshold == THRESHOLD == 0.5


def test_scenes_are_written_and_checked(capsys):
    assert main(["scenes"]) == 0 and main(["scenes", "--verify"]) == 0
    root = capsys.readouterr().out.splitlines()[-1]
    manifest = json.loads(open(os.path.join(root, "manifest.json")).read())
    assert {"train", "val", "tune", "pool_0"} <= manifest["units"].keys()


def one_line_error(capsys, arguments) -> str:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" or arguments[0] == "show"
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


def test_errors_that_the_user_can_fix_are_one_line(capsys, tmp_path):
    assert "size=3 is out of range; use 32 to 4096" in one_line_error(capsys, ["show", "--size", "3"])
    assert "near names: resnet50" in one_line_error(capsys, ["show", "--backbone", "resnet5"])
    assert "steps=5 needs a stage" in one_line_error(capsys, ["show", "--steps", "5"])
    assert "gone.json cannot be read" in one_line_error(capsys, ["show", "--config", str(tmp_path / "gone.json")])
    (tmp_path / "other.json").write_text('{"profile": "smoke"}')
    assert "give the config.json of a run" in one_line_error(capsys, ["show", "--config", str(tmp_path / "other.json")])
    assert "--devices 0 is out of range" in one_line_error(capsys, ["run", "finetune", "--devices", "0"])
    assert "--devices -1 is out of range" in one_line_error(capsys, ["plan", "--devices", "-1"])
    assert "--sizes '0' is not SIDE" in one_line_error(capsys, ["bench", "--sizes", "0"])
    (tmp_path / "none.json").write_text("nothing")
    assert "none.json is not JSON" in one_line_error(capsys, ["show", "--config", str(tmp_path / "none.json")])
    labels = ["--labeled", str(tmp_path / "mine.json"), "--val", str(tmp_path / "mine.json")]
    assert "mine.json: no such annotation file" in one_line_error(capsys, ["run", "pseudo_labeler", *labels])
    nowhere = ["--config", _unlabeled(tmp_path)]
    capsys.readouterr()
    assert "nowhere: no such folder or JSON" in one_line_error(capsys, ["run", "pseudo_labels", *nowhere])
    assert "profile paper has no scenes" in one_line_error(capsys, ["scenes", "--profile", "paper"])


def _unlabeled(tmp_path) -> str:
    """A configuration whose pseudo labeler is finished and whose pool does not exist."""
    config = resolve(profile="smoke", unlabeled=str(tmp_path / "nowhere"))
    config = replace(config, pseudo_labeler=replace(config.pseudo_labeler, steps=1))
    graph.obtain(requests.pseudo_labeler(config))
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    return str(tmp_path / "config.json")


def test_a_missing_run_is_an_error_with_the_command(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path))
    assert main(["summary", "--seed", "5"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: the pseudo labeler run pseudo_labeler-")
    assert "python -m cassl_lib run pseudo_labeler --config" in err


def test_damaged_scenes_are_an_error(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CASSL_DATASETS", str(tmp_path))
    assert main(["scenes"]) == 0
    root = capsys.readouterr().out.splitlines()[-1]
    with open(os.path.join(root, "annotations", "instances_val.json"), "a") as file:
        file.write(" ")
    assert "damaged: val" in one_line_error(capsys, ["scenes", "--verify"])


def test_failed_processes_are_an_error(capsys, monkeypatch):
    def fail(command):
        raise LaunchError("torchrun exited with status 1:\nmany\nlines")

    monkeypatch.setattr(launch, "_stream", fail)
    error = one_line_error(capsys, ["run", "pseudo_labels", "--devices", "2"])
    assert error == "error: torchrun exited with status 1: their messages are above\n"


def test_messages_are_plain_lines_on_stderr(capsys, tmp_path):
    config = resolve(profile="smoke", seed=11)
    config = replace(config, pseudo_labeler=replace(config.pseudo_labeler, steps=1))
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    assert main(["run", "pseudo_labeler", "--config", str(tmp_path / "config.json")]) == 0
    out, err = capsys.readouterr()
    run = graph.require(requests.pseudo_labeler(config))
    folder, *metrics = out.splitlines()
    assert folder == str(run.folder) and json.loads("".join(metrics)) == run.result["metrics"]
    assert err.splitlines()[:2] == [  # progress bars may follow, where nbval has loaded ipykernel
        f"{run.id}: pseudo labeler, 1 steps of 8 images from 16",
        "learning rate 0.002 (setting 0.004 for 16 images, batch 8)",
    ]
    assert "INFO" not in err


@pytest.mark.parametrize(
    "arguments", [[], ["run"], ["run", "sleep"], ["show", "--profile", "big"], ["show", "--lrr", "5"]]
)
def test_unknown_words_print_the_usage_and_exit_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and "usage: cassl" in capsys.readouterr().err


@pytest.fixture
def empty_root(monkeypatch, tmp_path):
    """A data root and a run store with nothing in them."""
    monkeypatch.setenv("CASSL_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    return tmp_path / "datasets"


@pytest.mark.parametrize("stage", ["pseudo_labeler", "pseudo_labels", "warmup", "finetune"])
@pytest.mark.parametrize("more", [[], ["--make-inputs", "--target", "panoptic"]])
def test_missing_published_data_are_one_line_that_says_where_they_belong(stage, more, empty_root, capsys):
    error = one_line_error(capsys, ["run", stage, "--profile", "paper", "--split", "base", *more])
    assert error == (
        f"error: missing data: {empty_root}/coco/train2017 and 8 more parts; unpack train2017.zip (18 GB, "
        "cocodataset.org) there, or set CASSL_DATASETS to the folder that holds it (`cassl data` with the same options "
        "lists every part)\n"
    )


def test_the_parts_of_the_published_data_are_listed(empty_root, capsys):
    asked = ["data", "--profile", "paper", "--split", "large"]
    assert main(asked) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"below {empty_root}:" and lines[-1] == "12 of 12 parts missing; see docs/data.md"
    assert "  MISSING  openimages/train: unpack train_0.tar.gz to train_f.tar.gz (513 GB, " in "\n".join(lines)
    for part in layout.PARTS.values():
        (empty_root / (part.other_places or (part.place,))[0]).mkdir(parents=True)
    assert main(asked) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13 and all(line.startswith("  there    ") for line in lines[1:])
    assert "  there    places365/places365_train_standard.txt" in lines


def test_objects_need_no_panoptic_files(empty_root, capsys):
    assert main(["data", "--profile", "paper", "--annotation", "objects"]) == 1
    out = capsys.readouterr().out
    assert "panoptic_train" not in out and "6 of 6 parts missing" in out
    assert main(["data", "--profile", "paper", "--annotation", "objects", "--target", "panoptic"]) == 1
    assert "10 of 10 parts missing" in capsys.readouterr().out


def test_embedded_scenes_and_own_data_need_no_download(empty_root, capsys):
    assert main(["data", "--profile", "demo"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "labeled: embedded scenes, which need no download"
    own = ["--labeled", "a.json", "--val", "b.json", "--unlabeled", "pictures"]
    assert main(["data", "--profile", "paper", *own]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "labeled: your own, a.json",
        "val: your own, b.json",
        "unlabeled: your own, pictures",
    ]


def test_the_settings_end_with_the_data_that_are_missing(empty_root, capsys):
    assert main(["show", "--profile", "paper"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"missing data: {empty_root}/coco/train2017 and 9 more")


@pytest.mark.parametrize("name", ["instances_mine.json", "mine.json"])
def test_entities_of_own_data_without_panoptic_annotations_are_an_error_that_names_objects(
    name, empty_root, capsys, tmp_path
):
    (tmp_path / "images").mkdir()
    (tmp_path / name).write_text('{"images": [], "categories": [], "annotations": []}')
    own = ["--labeled", str(tmp_path / name), "--val", str(tmp_path / name), "--unlabeled", str(tmp_path / "images")]
    error = one_line_error(capsys, ["run", "pseudo_labeler", "--profile", "paper", *own])
    assert "mine.json" in error and "annotation=objects" in error and "target=instances" in error


def test_the_module_is_the_same_command():
    command = [sys.executable, "-m", "cassl_lib", "show", "--seed", "-1"]
    done = subprocess.run(command, cwd=paths.REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "error: seed=-1 is out of range; use 0 to 2147483647\n"


def test_names_that_lead_out_of_their_folder_are_allowed_in_the_shell_for_this_process_and_its_children(monkeypatch):
    monkeypatch.setenv(paths.ALLOW_OUTSIDE, "")
    assert not paths.allow_outside()
    assert main(["pool", "--allow-outside", "--out", "none.txt", "."]) == 2  # refused for its ending
    assert paths.allow_outside() and os.environ[paths.ALLOW_OUTSIDE] == "1"
