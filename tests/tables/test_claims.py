"""Our numbers beside the paper's: means and gaps, intervals and verdicts of claims, curves."""

import math

import numpy as np
import pytest

from cassl_lib.tables import compare
from cassl_lib.tables.compare.claims import STUDENT

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
        ([1.0, 2.0, 0.5, 1.5, 0.0], "holds"),  # mean 1, half width 2.776 * 0.79 / sqrt(5) = 0.98
        ([1.0, 2.0, 0.5, 1.5, -0.1], "undecided"),  # mean 0.98, half width 2.776 * 0.83 / sqrt(5) = 1.03
    ],
)
def test_paired_differences_decide_a_claim(differences, verdict):
    assert compare.verdict(differences) == verdict


def test_the_interval_is_students():
    """By hand: mean (1 + 2 + 3 + 4 + 5) / 5 = 3, variance (4 + 1 + 0 + 1 + 4) / 4 = 2.5, error sqrt(2.5 / 5) = 0.7071,
    half width 2.776 * 0.7071 = 1.963."""
    assert compare.interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((3 - 1.963, 3 + 1.963), abs=1e-3)
    # Three seeds: mean 2, variance 1, error sqrt(1 / 3) = 0.5774, half width 4.303 * 0.5774 = 2.484
    assert compare.interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.484, 2 + 2.484), abs=1e-3)
    assert compare.interval([]) is None and compare.interval([1.0]) is None
    # Beyond the last quantile: that of nine degrees of freedom, 11 and not 10 seeds
    many = [0.0, 1.0] * 5 + [0.5]
    error = math.sqrt(2.5 / 10 / 11)
    assert compare.interval(many) == pytest.approx((0.5 - 2.262 * error, 0.5 + 2.262 * error))


@pytest.mark.parametrize(("freedom", "quantile"), STUDENT.items())
def test_the_quantiles_leave_two_and_a_half_percent_on_each_side(freedom, quantile):
    """The density of Student's t, integrated from 0 to the quantile by the trapezoidal rule, is 0.475.

    Closed forms beside it: 1 degree of freedom, tan(0.475 pi) = 12.706; 2, 0.95 / sqrt((1 - 0.95^2) / 2) = 4.303.
    """
    scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
    x = np.linspace(0, quantile, 100_001)
    density = scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    assert np.trapezoid(density, x) == pytest.approx(0.475, abs=3e-5)
    closed = {1: math.tan(0.475 * math.pi), 2: 0.95 / math.sqrt((1 - 0.95**2) / 2)}
    assert quantile == pytest.approx(closed.get(freedom, quantile), abs=5e-4)


def test_a_claim_names_cells_seeds_difference_interval_and_verdict():
    """By hand: differences 3, 4 and 5, mean 4, std 1, half width 4.303 / sqrt(3) = 2.484."""
    seeds = {"0": (0.35, 0.32), "1": (0.36, 0.32), "2": (0.36, 0.31), "3": (0.4, None)}
    rows = {row: {compare.DET: {}} for row in ("Objects (P,A)", "ImageNet")}
    for seed, values in seeds.items():
        for row, value in zip(rows, values, strict=True):
            rows[row][compare.DET][seed] = value
    claim = next(each for each in compare.claims({2: {"rows": rows}}, 2) if each.text.endswith("of several lengths"))
    assert claim.by_seed == pytest.approx({"0": 3, "1": 4, "2": 5})
    assert claim.cells[1:] == [
        *("Objects (P,A) minus ImageNet, finetuned det AP", "3", "+4.0", "1.0", "+1.52 to +6.48", "+1.3", "holds"),
    ]
    assert len(claim.cells) == len(compare.CLAIM_COLUMNS)
    compared = {each.compared for each in compare.claims({})}
    assert "warm-up strong, warm-up entity AP minus warm-up weak, warm-up entity AP, finetuning weak" in compared
    assert "warm-up 5x, finetuned det AP minus warm-up 1x, finetuned det AP, finetuning 3x" in compared
    assert any(
        each.startswith("finetuning strong, warm-up strong, finetuned det AP, minus finetuning") for each in compared
    )
    assert len(compared) == len(compare.CLAIMS)


def test_zero_has_a_plus_sign_and_an_end_next_to_zero_shows_its_side():
    """By hand: differences -0.1 and 0.06, mean -0.02; 1 and 1.08, mean 1.04, half width 12.706 * 0.04 = 0.508."""
    assert compare.Claim("chain", "a", "b", {"0": -0.1, "1": 0.06}).mean_text == "+0.0"
    assert compare.Claim("chain", "a", "b", {"0": 1.0, "1": 1.08}).interval_text == "+0.53 to +1.55"


def test_claims_about_the_main_chain_are_of_its_summaries():
    """By hand: 39.5 - 38.7 and 41.0 - 39.0; the paper's entities: large 42.0 - 42.1, tiny 40.2 - 42.1."""
    numbers = ((0.395, 0.387), (0.410, 0.390), (None, 0.4))
    chains = [
        {"seed": seed, "warmup_agnostic_ap": student, "labeler_agnostic_ap": labeler}
        for seed, (student, labeler) in enumerate(numbers)
    ]
    (claim,) = compare.chain_claims(chains, "large")
    assert claim.table == "chain" and claim.by_seed == pytest.approx({"0": 0.8, "1": 2.0})
    assert claim.mean == pytest.approx(1.4) and claim.paper == pytest.approx(-0.1)
    (claim,) = compare.chain_claims([], "tiny")
    assert claim.verdict == "not measured" and claim.paper == pytest.approx(-1.9)
    assert compare.chain_claims([], "places")[0].paper is None


def test_claims_without_results_are_not_measured_and_hold_the_papers_difference():
    claims = {each.text: each for each in compare.claims({})}
    assert all(each.verdict == "not measured" for each in claims.values())
    assert claims[AGNOSTIC].paper == pytest.approx(1.0) and claims[GAP].paper == pytest.approx(5.1 - 1.9)
    assert claims[GAP].cells[2:] == ["0", "", "", "", "+3.2", "not measured"]


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


def test_rows_that_are_no_point_of_a_curve_are_left_out():
    extra = {"higher rate for the classifier": {"AP": {"0": 0.4}, compare.WARM: {"0": 0.4}, compare.DET: {"0": 0.4}}}
    panels = compare.curves({table: {"rows": extra} for table in (3, 5, 7, "threshold")})
    assert all(not line["here"] for panel in panels for line in panel["lines"].values())
