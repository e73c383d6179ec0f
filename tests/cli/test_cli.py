"""The command line: help, what would be done, and one line for what a person can put right."""

import inspect
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from cassl_lib import paths
from cassl_lib.cli.main import main
from cassl_lib.resolve import resolve, to_json
from cassl_lib.stages import all_stages as stages
from cassl_lib.stages import launch


def test_help_names_every_verb_and_parameter(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    overview = capsys.readouterr().out
    assert all(verb in overview for verb in ("run", "show", "scenes", "summary"))
    with pytest.raises(SystemExit) as caught:
        main(["run", "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and "STAGE" in text
    parameters = {f"--{name.replace('_', '-')}" for name in inspect.signature(resolve).parameters} - {"--stage"}
    assert all(option in text for option in parameters | {"--no-masks", "--config", "--devices", "--start"})


def test_show_prints_the_settings_and_why_the_profile(capsys):
    assert main(["show", "--seed", "3", "--size", "64", "--no-masks", "--threshold", "0.3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "profile smoke (from $CASSL_PROFILE): seconds; the tests"
    named = {line.split()[0]: line for line in lines[1:]}
    assert named["seed"].split() == ["seed", "3"] and "masks=False" in named["model"]
    assert "test_size=64" in named["augment"] and "threshold=0.3" in named["label"]


def test_a_config_file_stands_for_all_options(tmp_path, capsys):
    config = resolve(profile="smoke", seed=7)
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    assert main(["show", "--config", str(tmp_path / "config.json")]) == 0
    from_file = capsys.readouterr().out
    assert main(["show", "--profile", "smoke", "--seed", "7"]) == 0
    assert capsys.readouterr().out.split("\n", 1)[1] == from_file  # but for the reason of the profile


def test_epochs_belong_to_the_stage_that_is_run(capsys, monkeypatch):
    seen = {}
    monkeypatch.setattr(launch, "run_stage", lambda verb, config, **options: seen.update(config=config) or 1 / 0)
    for verb, stage in (("train_labeler", "labeler"), ("warm_up", "warmup"), ("finetune", "finetune")):
        with pytest.raises(ZeroDivisionError):
            main(["run", verb, "--epochs", "2"])
        assert getattr(seen["config"], stage).epochs == 2 and getattr(seen["config"], stage).steps == 0
    assert main(["run", "label", "--epochs", "2"]) == 2
    assert "epochs=2.0 needs a stage" in capsys.readouterr().err


def test_scenes_are_written_and_checked(capsys):
    assert main(["scenes"]) == 0 and main(["scenes", "--verify"]) == 0
    root = capsys.readouterr().out.splitlines()[-1]
    manifest = json.loads(open(os.path.join(root, "manifest.json")).read())
    assert {"train", "val", "tune", "coco"} <= manifest["units"].keys()


def one_line_error(capsys, arguments) -> str:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" or arguments[0] == "show"
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


def test_what_a_person_can_put_right_is_one_line(capsys, tmp_path):
    assert "size=3 is out of range; use 32 to 4096" in one_line_error(capsys, ["show", "--size", "3"])
    assert "gone.json cannot be read" in one_line_error(capsys, ["show", "--config", str(tmp_path / "gone.json")])
    (tmp_path / "other.json").write_text('{"profile": "smoke"}')
    assert "give a run's config.json" in one_line_error(capsys, ["show", "--config", str(tmp_path / "other.json")])
    (tmp_path / "none.json").write_text("nothing")
    assert "none.json cannot be read" in one_line_error(capsys, ["show", "--config", str(tmp_path / "none.json")])
    labels = ["--labeled", str(tmp_path / "mine.json"), "--val", str(tmp_path / "mine.json")]
    assert "mine.json: no such annotation file" in one_line_error(capsys, ["run", "train_labeler", *labels])
    nowhere = ["--config", _unlabeled(tmp_path)]
    capsys.readouterr()
    assert "nowhere: no such folder or JSON" in one_line_error(capsys, ["run", "label", *nowhere])
    assert "profile paper has no scenes" in one_line_error(capsys, ["scenes", "--profile", "paper"])


def _unlabeled(tmp_path) -> str:
    """A config whose labeler exists and whose pool does not."""
    config = resolve(profile="smoke", unlabeled=str(tmp_path / "nowhere"))
    config = replace(config, labeler=replace(config.labeler, steps=1))
    stages.train_labeler(config)
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    return str(tmp_path / "config.json")


def test_a_missing_run_is_an_error_with_the_command(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path))
    assert main(["summary", "--seed", "5"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: labeler-") and "python -m cassl_lib run train_labeler --config" in err


def test_damaged_scenes_are_an_error(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CASSL_DATASETS", str(tmp_path))
    assert main(["scenes"]) == 0
    root = capsys.readouterr().out.splitlines()[-1]
    with open(os.path.join(root, "annotations", "instances_val.json"), "a") as file:
        file.write(" ")
    assert "damaged: val" in one_line_error(capsys, ["scenes", "--verify"])


def test_failed_processes_are_an_error(capsys, monkeypatch):
    def fail(command):
        raise launch.LaunchError("torchrun ended with 1:\nmany\nlines")

    monkeypatch.setattr(launch, "_stream", fail)
    found = one_line_error(capsys, ["run", "label", "--devices", "2"])
    assert found == "error: torchrun ended with 1: their messages are above\n"


@pytest.mark.parametrize(
    "arguments", [[], ["run"], ["run", "sleep"], ["show", "--profile", "big"], ["show", "--lrr", "5"]]
)
def test_what_the_parser_refuses_ends_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and "usage: python -m cassl_lib" in capsys.readouterr().err


def test_the_module_runs_as_a_command():
    command = [sys.executable, "-m", "cassl_lib", "show", "--seed", "-1"]
    done = subprocess.run(command, cwd=paths.REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "error: seed=-1 is out of range; use 0 to 2147483647\n"
