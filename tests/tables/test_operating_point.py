"""The operating point: which runs are looked at, on which scenes, and what is said of them."""

import json

import pytest

from cassl_lib.cli.main import main
from cassl_lib.report import readme
from cassl_lib.resolve import resolve
from cassl_lib.tables import operating_point


def test_baseline_and_ga_are_trained_for_as_long_as_each_other():
    """gpu: labeler and warm-up 10,000 steps, finetuning 5,000; twice as much finetuning for both."""
    wants = operating_point.asked(resolve(profile="gpu"))
    assert list(wants) == [
        "labeler",
        "labeler, entities",
        "from nothing, 5000 steps",
        "(G,A), 5000 steps",
        "from nothing, 15000 steps",
        "(G,A), 10000 steps",
        "from nothing, 20000 steps",
    ]
    assert wants["(G,A), 10000 steps"].source.key == wants["labeler"].key
    assert wants["from nothing, 20000 steps"].config.finetune.steps == 10_000
    # no run on pseudo labels is looked at
    assert {want.verb for each in wants.values() for want in each.with_sources()} == {"train_labeler", "finetune"}


def test_it_is_measured_on_the_tuning_scenes_and_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    seen, alone = [], []
    original = operating_point.evaluate_model

    def evaluate(model, images, **how):
        seen.append(images.path.name)
        alone.append(model.config.one_entity_per_pixel)
        return original(model, images, **how)

    monkeypatch.setattr(operating_point, "evaluate_model", evaluate)
    assert main(["regime", "--profile", "smoke", "--record"]) == 0
    assert len(seen) == 8 and all("tune" in name for name in seen)
    assert [name.startswith("panoptic") for name in seen] == [False, True, True] + [False] * 5
    assert alone == [False, False, True] + [False] * 5
    said = capsys.readouterr().out
    assert "on the tuning scenes" in said and "from nothing, 18 steps" in said  # 6 of warm-up, 12 of finetuning
    found = json.loads((tmp_path / "regime_smoke_seed0.json").read_text())
    assert found["rows"]["labeler"]["specific"] is None and found["rows"]["(G,A), 12 steps"]["steps"] == 12


def test_the_ratio_is_of_specific_to_agnostic():
    rows = {"a": {"agnostic": 0.4, "agnostic_75": 0.35, "specific": 0.3, "ratio": 0.75, "steps": 1200}}
    rows["b"] = {"agnostic": 0.4, "agnostic_75": 0.35, "specific": None, "ratio": None, "steps": 10}
    lines = operating_point.text({"rows": rows}).splitlines()
    assert lines[1].split() == ["a", "1,200", "30.0", "40.0", "35.0", "0.75"]
    assert lines[2].split() == ["b", "10", "40.0", "35.0"]


def test_without_scenes_there_is_nothing_to_look_at(tmp_path, capsys):
    mine = str(tmp_path / "mine.json")
    assert main(["regime", "--profile", "smoke", "--labeled", mine, "--val", mine]) == 2
    assert "looked at on tuning scenes" in capsys.readouterr().err


@pytest.mark.parametrize("units", [(3,), (3, 6, 9)])
def test_other_lengths_may_be_asked_for(units):
    assert len(operating_point.asked(resolve(profile="demo"), units)) == 3 + 2 * len(units)
