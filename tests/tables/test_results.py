"""Recorded results: file names, contents, and what may replace what."""

import json
from dataclasses import replace

import pytest
from recorded import recorded_chain

from cassl_lib.errors import ConfigError
from cassl_lib.resolve import resolve, to_json
from cassl_lib.tables import results


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def table(number, value=0.4, profile="smoke"):
    return {"table": number, "profile": profile, "seeds": [0], "rows": {"a": {"AP": {"0": value}}}, "runs": {}}


def test_a_result_is_recorded_with_its_configuration(folder):
    config = resolve(profile="smoke", seed=3)
    file = results.record(config, {"cassl_ap": 0.5, "seed": 3})
    assert file == folder / "chain_smoke_tiny_seed3.json"
    assert json.loads(file.read_text()) == {
        "cassl_ap": 0.5,
        "seed": 3,
        "config": json.loads(json.dumps(to_json(config))),
    }
    entities = replace(config, annotation="entities", target="panoptic")
    assert results.record(entities, {}, "pictures").name == "pictures_smoke_tiny_entities_panoptic_seed3.json"


def test_chains_are_read_by_seed(folder):
    for seed in (10, 2):
        results.record(resolve(profile="smoke", seed=seed), recorded_chain() | {"seed": seed})
    assert [chain["seed"] for chain in results.chains("smoke", "tiny")] == [2, 10]
    assert results.chains("demo", "tiny") == []


def test_tables_are_read_in_the_papers_order(folder):
    assert results.recorded("smoke") == {}
    for number in (9, "threshold", 2):
        results.record_table(table(number))
    results.record_table(table(1, profile="demo"))
    assert list(results.recorded("smoke")) == [2, 9, "threshold"]
    assert results.recorded("smoke")["threshold"] == table("threshold")


def test_fewer_numbers_do_not_replace_more(folder):
    file = results.record_table(table(3))
    before = file.read_bytes()
    with pytest.raises(ConfigError, match=r"table3_smoke.json has 1 numbers, and there are 0 now. Delete it"):
        results.record_table(table(3, None))
    assert file.read_bytes() == before
    assert results.record_table(table(3, 0.5)) == file and results.recorded("smoke")[3] == table(3, 0.5)
