"""Our numbers beside the paper's: means and gaps, verdicts on claims, curves."""

import numpy as np
import pytest

from cassl_lib.tables import compare

GAP = "class-agnostic pseudo labels have a smaller quality gap than class-specific ones"
AGNOSTIC = "class-agnostic pseudo labels are a better warm-up than class-specific ones"


def test_a_cell_holds_mean_std_and_seeds_and_its_gap_to_the_paper():
    cell = {"0": 0.40, "1": 0.44, "2": None}
    assert compare.cell_text(cell) == "42.0 ± 2.8 (2)" and compare.cell_text({"0": 0.4}) == "40.0"
    rows = {"COCO train2017": {"class-specific AP": cell}, "COCO unlabeled": {}}
    lines = compare.lines({"table": 1, "rows": rows})
    assert lines[0] == ["COCO train2017", "class-specific AP", "41.0", "42.0 ± 2.8 (2)", "+1.0"]
    assert lines[1] == ["COCO unlabeled", "class-specific AP", "35.9", "", ""]


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([], "not measured"),
        ([3.0], "undecided: one seed"),
        ([2.0, 2.1, 1.9], "holds"),  # mean 2, 4.30 * 0.1 / sqrt(3) = 0.25
        ([-2.0, -2.1, -1.9], "does not hold"),
        ([2.0, -1.0, 1.5], "undecided"),  # mean 0.83, half width 4.30 * 1.61 / 1.73 = 4.0
        ([0.0, 0.0], "undecided"),
    ],
)
def test_paired_differences_decide_a_claim(differences, verdict):
    assert compare.verdict(differences) == verdict


def test_claims_without_results_are_not_measured_and_hold_the_papers_difference():
    claims = {each["claim"]: each for each in compare.claims({})}
    assert all(each["verdict"] == "not measured" for each in claims.values())
    assert claims[AGNOSTIC]["paper"] == pytest.approx(1.0) and claims[GAP]["paper"] == pytest.approx(5.1 - 1.9)


def test_differences_pair_numbers_of_the_same_seed():
    rows = {"Objects (P,A)": {"finetuned det AP": {"0": 0.5, "1": None, "2": 0.4}}}
    rows["ImageNet"] = {"finetuned det AP": {"0": 0.4, "1": 0.1, "2": 0.45}}
    first, second = (("Objects (P,A)", compare.DET), ("ImageNet", compare.DET))
    assert compare.paired(rows, first, second) == pytest.approx({"0": 10, "2": -5})


def test_curves_hold_the_numbers_of_the_tables():
    rows = {"12 (1x)": {"AP": {"0": 0.40, "1": 0.44}}, "24 (2x)": {}, "60 (5x)": {"AP": {"0": 0.5, "1": None}}}
    labelers = {"pseudo labeler": {"1": {"0": 0.30}, "5": {"0": 0.4}}, "warmed-up target detector": {"1": {"0": 0.35}}}
    assert all(not line["here"] for panel in compare.curves({}) for line in panel["lines"].values())
    panels = compare.curves({3: {"rows": rows}, 5: {"rows": labelers}})
    lengths, pools, labeler, thresholds = (panel["lines"] for panel in panels)
    assert np.allclose(lengths[compare.WARM]["here"], [(12, 42), (60, 50)])
    assert lengths[compare.WARM]["paper"][:2] == [(12, 38.4), (24, 39.6)]
    assert np.allclose(labeler[compare.WARM]["here"], [(30, 35)])
    assert labeler[compare.WARM]["paper"][-1] == (42.1, 40.2)
    assert pools[compare.DET]["here"] == thresholds[compare.DET]["here"] == []
