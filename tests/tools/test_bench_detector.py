"""The benchmark of the detector: one measured case, and the line that shows it."""

import pytest

from cassl_lib.tools import bench_detector

CASE = {"task": "train", "backbone": "resnet50", "size": "64x96", "batch": 1, "device": "cpu", "threads": 1, "steps": 1}


@pytest.mark.parametrize("task", ["train", "detect"])
def test_a_case_is_measured(task, monkeypatch):
    monkeypatch.setattr(bench_detector, "WARM_UP", 0)
    measured = bench_detector.measure(CASE | {"task": task})
    assert measured["seconds"] >= measured["best_seconds"] > 0 and measured["peak_gb"] >= measured["imports_gb"] > 0
    assert list(measured["shares"]) == ["backbone", "neck", "head", "mask branch", "rest"]
    assert sum(measured["shares"].values()) == pytest.approx(1) and min(measured["shares"].values()) > 0


def test_a_line_shows_the_public_numbers_where_they_apply():
    measured = CASE | {"size": "320", "batch": 2, "threads": 2, "seconds": 0.5, "peak_gb": 1.0, "shares": {"rest": 1.0}}
    assert bench_detector.row(measured).split()[:7] == ["train", "resnet50", "320", "0.500", "4.0", "1.00", "0.82"]
    assert "0.82" not in bench_detector.row(measured | {"batch": 1})
    assert bench_detector.side("320") == 320 and bench_detector.side("64x96") == 0
