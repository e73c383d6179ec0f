"""The synthetic store is a valid one, its measurements run, and their table shows them."""

import json

import pytest

from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.report import blocks, readme
from cassl_lib.tables import results
from cassl_lib.tools import bench_store


def test_a_synthetic_store_is_written_read_and_trained_from(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_store, "SHARD", 10)
    monkeypatch.setattr(bench_store, "BANK", 8)
    monkeypatch.setattr(bench_store, "READS", 50)
    monkeypatch.setattr(bench_store, "STEPS", 3)
    written = bench_store.write(tmp_path, images=25, labels=3)
    labels = PseudoLabelStore(tmp_path / "store", threshold=0.0)
    assert written["written"] == len(labels) == 25 and len(labels.manifest["shards"]) == 3
    assert labels.has_masks and all(len(item["scores"]) == 3 for item in labels)
    assert bench_store.write(tmp_path, images=25, labels=3)["written"] == 0  # finished shards are kept
    assert 0 < bench_store.measure_open(tmp_path, 0)["seconds"] < 5
    assert 0 < bench_store.measure_read(tmp_path, 0)["second_us"] < 1e5
    trained = bench_store.measure_train(tmp_path, 0)
    assert trained["images_per_second"] > 0 and len(trained["own_mb"]) == 1


def test_the_table_has_one_column_per_store(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    assert readme.store() == blocks.NOTHING
    for images in (1000, 200):
        read, train = {"own_mb": 2.0, "first_us": 70.4, "second_us": 33.0}, {"own_mb": [600, 400, 410]}
        measured = {"images": images, "labels": 9 * images, "bytes": 2500 * images, "written": images}
        measured |= {"write_seconds": 0.5, "open": {"seconds": 0.002, "own_mb": 0.1}, "read": read, "train": train}
        measured |= {"statistics": {"seconds": 1.0}, "verify": {"seconds": 2.0}}
        place = {"device": "2 CPU cores", "date": "2026-01-01"}
        (tmp_path / f"store_{images}.json").write_text(json.dumps({"environment": place, "measured": measured}))
    lines = blocks.markdown(readme.store()).splitlines()
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines if "|" in line}
    assert [cell.strip() for cell in rows[""]] == ["200 images", "1,000 images"]
    assert [cell.strip() for cell in rows["writing, images per second"]] == ["400", "2,000"]
    assert [cell.strip() for cell in rows["training: private memory of each loader process, MB"]] == ["410", "410"]
    assert [cell.strip() for cell in rows["the same in the first pass, which opens the shards, µs"]] == ["70", "70"]


@pytest.mark.parametrize("file", sorted(results.RESULTS.glob("store_*.json")), ids=lambda file: file.stem)
def test_recorded_stores_open_and_read_fast_at_any_size(file):
    """Opened in less than a second, less than 200 MB of memory, a random row in less than 100 microseconds."""
    measured = json.loads(file.read_text())["measured"]
    assert measured["open"]["seconds"] < 1 and measured["read"]["own_mb"] < 200 and measured["read"]["second_us"] < 100
