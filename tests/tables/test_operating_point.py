"""The operating point: which runs are measured, on which scenes, and what is recorded."""

import functools
import json

import pytest

from cassl_lib.cli.main import main
from cassl_lib.resolve import resolve, to_json
from cassl_lib.tables import operating_point, results, runner


def test_baselines_are_as_long_as_finetuning_and_longer():
    """gpu: pseudo labeler and warm-up 10,000 steps, finetuning 5,000, and twice that."""
    requests = operating_point.requests_by_name(resolve(profile="gpu"))
    assert list(requests) == [
        "pseudo labeler",
        "pseudo labeler, entities",
        "from scratch, 5000 steps",
        "(G,A), 5000 steps",
        "from scratch, 15000 steps",
        "(G,A), 10000 steps",
        "from scratch, 20000 steps",
    ]
    assert requests["(G,A), 10000 steps"].input == requests["pseudo labeler"]
    assert requests["from scratch, 20000 steps"].config.finetune.steps == 10_000
    # No run on pseudo labels is measured.
    stages = {request.stage for each in requests.values() for request in each.with_inputs()}
    assert stages == {"pseudo_labeler", "finetune"}


def test_it_is_measured_on_the_tuning_scenes_and_recorded(smoke, tmp_path, monkeypatch, capsys):
    (tmp_path / "config.json").write_text(json.dumps(to_json(smoke)))
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(runner, "make", functools.partial(runner.make, separate_processes=False))
    evaluated, alone = [], []
    original = operating_point.evaluate_detector

    def evaluate(detector, images, **options):
        evaluated.append(images.path.name)
        alone.append(detector.config.one_entity_per_pixel)
        return original(detector, images, **options)

    monkeypatch.setattr(operating_point, "evaluate_detector", evaluate)
    assert main(["operating-point", "--config", str(tmp_path / "config.json"), "--record"]) == 0
    assert len(evaluated) == 8 and all("tune" in name for name in evaluated)
    assert [name.startswith("panoptic") for name in evaluated] == [False, True, True] + [False] * 5
    assert alone == [False, False, True] + [False] * 5
    out = capsys.readouterr().out
    assert "on the tuning scenes" in out and "from scratch, 6 steps" in out  # 2 of warm-up, 4 of finetuning
    recorded = json.loads((tmp_path / "operating_point_smoke_seed0.json").read_text())["rows"]
    assert recorded["pseudo labeler"]["specific"] is None and recorded["(G,A), 4 steps"]["steps"] == 4


def test_the_ratio_is_of_class_specific_to_class_agnostic_ap():
    rows = {"a": {"agnostic": 0.4, "agnostic_75": 0.35, "specific": 0.3, "ratio": 0.75, "steps": 1200}}
    rows["b"] = {"agnostic": 0.4, "agnostic_75": 0.35, "specific": None, "ratio": None, "steps": 10}
    lines = operating_point.text({"rows": rows}).splitlines()
    assert lines[1].split() == ["a", "1,200", "30.0", "40.0", "35.0", "0.75"]
    assert lines[2].split() == ["b", "10", "40.0", "35.0"]


def test_without_scenes_there_is_nothing_to_measure_on(tmp_path, capsys):
    mine = str(tmp_path / "mine.json")
    assert main(["operating-point", "--profile", "smoke", "--labeled", mine, "--val", mine]) == 2
    assert "no tuning scenes to measure the operating point on" in capsys.readouterr().err


@pytest.mark.parametrize("units", [(3,), (3, 6, 9)])
def test_other_lengths_of_finetuning_can_be_measured(units):
    assert len(operating_point.requests_by_name(resolve(profile="demo"), units)) == 3 + 2 * len(units)
