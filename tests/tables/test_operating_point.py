"""The operating point: which runs are measured, on which scenes, what is chosen, and what is recorded."""

import functools
import json

import pytest

from cassl_lib.cli.main import main
from cassl_lib.resolve import resolve, to_json
from cassl_lib.stages import choice
from cassl_lib.tables import operating_point, results, runner


def test_baselines_are_as_long_as_finetuning_and_longer():
    """gpu: baselines of 1 and 4 times the length of finetuning, the other rows of 1 and 2 times."""
    config = resolve(profile="gpu")
    own = config.finetune.steps
    points = operating_point.points(config)
    rows = ("Objects (G,A)", "Objects (P,A)", "Objects (P,S)")
    assert list(points) == [
        "pseudo labeler",
        "pseudo labeler, entities",
        "warmed-up model",
        *(f"baseline, {length * own} steps" for length in config.baseline_lengths),
        *(f"{row}, {length * own} steps" for row in rows for length in (1, 2)),
    ]
    twice = {row: points[f"{row}, {2 * own} steps"].request for row in rows}
    assert all(request.config.finetune.steps == 2 * own for request in twice.values())
    assert twice["Objects (G,A)"].input == points["pseudo labeler"].request
    assert twice["Objects (P,A)"].input == points["warmed-up model"].request
    assert twice["Objects (P,S)"].input.config.class_specific
    assert points[f"baseline, {4 * own} steps"].request.is_baseline


def test_it_is_measured_on_the_tuning_scenes_and_recorded(smoke, tmp_path, monkeypatch, capsys):
    (tmp_path / "config.json").write_text(json.dumps(to_json(smoke)))
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(runner, "make", functools.partial(runner.make, separate_processes=False))
    evaluated, alone = [], []

    def watched(original):
        def evaluate(detector, images, **options):
            evaluated.append(images.path.name)
            alone.append(detector.config.one_entity_per_pixel)
            return original(detector, images, **options)

        return evaluate

    for module in (operating_point, choice):
        monkeypatch.setattr(module, "evaluate_detector", watched(module.evaluate_detector))
    command = ["operating-point", "--config", str(tmp_path / "config.json"), "--record"]
    assert main(command) == 0
    # pseudo labelers and warm-up, 2 baselines, 3 rows of 2 lengths; entities twice
    assert len(evaluated) == 3 + 2 + 6 + 1 and all("tune" in name for name in evaluated)
    assert [name.startswith("panoptic") for name in evaluated] == [False, True, True] + [False] * 9
    assert alone == [False, False, True] + [False] * 9
    out = capsys.readouterr().out
    assert "on the tuning scenes" in out and "baseline, 4 steps" in out  # finetuning's own 2, and twice that
    recorded = json.loads((tmp_path / "operating_point_smoke_seed0.json").read_text())
    rows = recorded["rows"]
    assert rows["pseudo labeler"]["specific"] is None and rows["Objects (P,A), 4 steps"]["steps"] == 4
    assert list(recorded["chosen"]) == ["baseline", "Objects (G,A)", "Objects (P,A)", "Objects (P,S)"]
    # Metrics are kept in the runs' folders: only the entities without overlap are evaluated again.
    del evaluated[:], alone[:]
    assert main(command) == 0 and alone == [True]


def row(name, length, specific, agnostic=0.4):
    ratio = None if specific is None else specific / agnostic
    shown = {"agnostic": agnostic, "agnostic_75": 0.35, "specific": specific, "ratio": ratio}
    return shown | {"row": name, "length": length, "steps": round(1000 * (length or 1))}


def test_each_row_has_the_length_with_the_best_ap_and_the_shorter_if_equal():
    rows = {
        "a": row(None, None, None),
        "b4": row("baseline", 4, 0.31),
        "b2": row("baseline", 2, 0.31),
        "b1": row("baseline", 1, 0.28),
        "p1": row("Objects (P,A)", 1, 0.35),
        "p2": row("Objects (P,A)", 2, 0.34),
    }
    chosen = operating_point.chosen_lengths(rows)
    assert chosen == {"Objects (P,A)": {"length": 1, "steps": 1000}, "baseline": {"length": 2, "steps": 2000}}
    shown = operating_point.text({"rows": rows, "chosen": chosen})
    assert shown.endswith("tuning scenes: baseline 2x (2,000 steps); Objects (P,A) 1x (1,000 steps).")


def test_the_ratio_is_of_class_specific_to_class_agnostic_ap():
    rows = {"a": row("baseline", 1.2, 0.3), "b": row(None, None, None)}
    lines = operating_point.text({"rows": rows, "chosen": {}}).splitlines()
    assert lines[1].split() == ["a", "1,200", "30.0", "40.0", "35.0", "0.75"]
    assert lines[2].split() == ["b", "1,000", "40.0", "35.0"]


def test_without_scenes_there_is_nothing_to_measure_on(tmp_path, capsys):
    mine = str(tmp_path / "mine.json")
    assert main(["operating-point", "--profile", "smoke", "--labeled", mine, "--val", mine]) == 2
    assert "no tuning scenes to measure the operating point on" in capsys.readouterr().err


@pytest.mark.parametrize("lengths", [(1,), (0.5, 1, 2)])
def test_other_lengths_of_finetuning_can_be_measured(lengths):
    config = resolve(profile="demo")
    points = operating_point.points(config, lengths)
    assert len(points) == 3 + len(config.baseline_lengths) + 3 * len(lengths)
