"""What a table still needs: which tables and seeds are meant, what is finished, what the rest costs."""

import json
import math
from dataclasses import replace

import pytest
from table_requests import finish, needed

from cassl_lib.cli.main import main
from cassl_lib.errors import ConfigError
from cassl_lib.resolve import resolve
from cassl_lib.stages.requests import pseudo_labeler, warmup
from cassl_lib.tables import definitions, status
from cassl_lib.tables.definitions import ROWS
from cassl_lib.tools.plan import cost, estimate, pace, throughput


def test_tables_are_named_by_number_or_name():
    smoke, paper = (resolve(profile=profile) for profile in ("smoke", "paper"))
    assert status.tables_named(["all"], smoke) == list(ROWS) == [1, 2, 3, 4, 5, 6, 7, 9, "threshold", "shift"]
    assert status.tables_named(["all"], paper) == [1, 2, 3, 4, 5, 6, 7, 9, "threshold"]  # shifted pools are scenes
    assert status.tables_named(["all"], replace(paper, unlabeled="photos")) == [1, 2, 3, 4, 5, 6, 9, "threshold"]
    assert status.tables_named(["9", "threshold", "1"], smoke) == [9, "threshold", 1]
    with pytest.raises(ConfigError, match="table '8' is not implemented; use all, or one of: 1, 2, 3"):
        status.tables_named(["8"], smoke)


def test_seeds_start_from_the_configurations(config):
    assert list(status.seeds_of(replace(config, seed=4))) == [4, 5, 6]  # the profile's number
    assert list(status.seeds_of(config, 1)) == [0]
    with pytest.raises(ConfigError, match="seeds=0 is out of range; use 1 or more"):
        status.seeds_of(config, 0)


def test_a_run_costs_its_steps_or_the_images_it_labels():
    """By hand: 118,287 images in batches of 16 are 7,393 steps per epoch; 36 epochs of them; 60 epochs of 123,403."""
    config = resolve(profile="paper", split="tiny")
    images = {"labeled": 118_287, "pool": 123_403, "warmup": 123_403}
    short, long = math.ceil(36 * 118_287 / 16), math.ceil(60 * 123_403 / 16)
    assert status.work_of(pseudo_labeler(config), images) == short
    assert status.work_of(warmup(config), images) == long
    assert status.work_of(warmup(config).input, images) == 123_403
    assert [status.work_of(request, images) for request in definitions.finetuned(config).candidates] == [
        short,
        math.ceil(72 * 118_287 / 16),
    ]


def test_finished_runs_of_a_stage_give_its_rate(store, monkeypatch):
    """By hand: 10 steps took 5 s, so that 6 steps cost 3 s. Nothing is measured."""
    config = resolve(profile="smoke")
    done, missing = pseudo_labeler(config), pseudo_labeler(replace(config, seed=1))
    run = finish(done, steps=10, seconds=5.0)
    monkeypatch.setattr(status, "pace", None)
    assert status.cost_of([missing], [run]) == {missing: 3.0}
    first, second, total = status.listing([done, missing], config).splitlines()
    assert f"finished {run.id}" in first and first.endswith("seed 0")
    assert second.split()[2:5] == ["missing", "3.0", "s"] and second.endswith("seed 1")
    assert total == "2 runs, 1 missing: 3.0 s one after the other"


def test_the_dry_run_measures_and_lists_and_makes_nothing(store, monkeypatch, capsys):
    monkeypatch.setattr(throughput, "UNCOUNTED", 1)
    monkeypatch.setattr(throughput, "COUNTED", 3)
    assert main(["table", "3", "--profile", "smoke", "--batch-size", "2", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count("missing  ") == 4 == len(needed(3, resolve(profile="smoke"))) and "4 runs, 4 missing" in out
    assert not list(store.glob("*/result.json"))
    # The second time nothing is measured; what cannot be read is.
    measured = []
    rates = json.loads((store / "pace.json").read_text())
    plan = cost.Plan("", (cost.Row("warmup", steps=10, images=160, seconds=5.0, evaluation=0.0, kept=0),), (), "", 0)
    monkeypatch.setattr(estimate, "estimate", lambda config: measured.append(config) or plan)
    assert main(["table", "3", "--profile", "smoke", "--batch-size", "2", "--seed", "1", "--dry-run"]) == 0
    assert not measured and json.loads((store / "pace.json").read_text()) == rates
    (store / "pace.json").write_text("{")
    assert pace.pace(resolve(profile="smoke")) == {"warmup": 0.5} and len(measured) == 1
    assert json.loads((store / "pace.json").read_text()) != rates
