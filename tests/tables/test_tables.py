"""The paper's tables as data: rows as printed, runs shared between tables, what is missing, failures, and claims."""

import argparse
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from cassl_lib import paper, paths
from cassl_lib.cli import table
from cassl_lib.cli.main import main
from cassl_lib.errors import ConfigError, DataError
from cassl_lib.report import readme
from cassl_lib.resolve import resolve
from cassl_lib.runs import Run
from cassl_lib.tables import compare, definitions, runner
from cassl_lib.tables.definitions import ROWS, Want, labeler, wants, warmup

PRINTED = {1: paper.TABLE1, 2: paper.TABLE2, 3: paper.TABLE3, 4: paper.TABLE4, 5: paper.TABLE5}
PRINTED |= {6: paper.TABLE6, 7: paper.TABLE7, 9: paper.TABLE9}


@pytest.fixture(scope="module")
def config():
    return resolve(profile="gpu")


def named(table, config):
    return {row.name: row.cells for row in ROWS[table](config)}


@pytest.mark.parametrize("table", PRINTED)
def test_rows_are_named_as_the_paper_prints_them(table, config):
    assert list(named(table, config)) == list(PRINTED[table])
    for row in ROWS[table](config):
        for column in row.cells:
            assert compare.printed(table, row.name, column) is not None or (table, column) == (
                2,
                "finetuned mask AP",
            )


def test_the_threshold_decides_the_warm_up_and_not_its_labels(config):
    rows = ROWS["threshold"](config)
    warmups = [row.cells["warm-up entity AP"].want for row in rows]
    assert [each.config.label.threshold for each in warmups] == [float(row.name) for row in rows]
    assert len({each.key for each in warmups}) == 5 and len({each.source.key for each in warmups}) == 1
    assert compare.printed("threshold", "0.5", "finetuned det AP") is None


def test_a_run_that_tables_share_is_wanted_once(config):
    """The default chain is in all tables: labeler, labels, warm-up of 5 fifths, finetuning of 3."""
    default = warmup(config)
    for number in (2, 3, 4, 5, 6, 7, 9):
        assert default.key in {want.key for want in wants(ROWS[table](config))}, table
    everything = wants([row for table in ROWS for row in ROWS[table](config)])
    assert len({want.key for want in everything}) == len(everything)
    # 5 lengths of warm-up; 4 more by weaker labelers; with classes; entities; strong; 3 larger pools; 4 more thresholds
    assert sum(want.verb == "warm_up" for want in everything) == 5 + 4 + 1 + 1 + 1 + 3 + 4
    assert [want.verb for want in everything] == sorted((w.verb for w in everything), key=definitions.ORDER.index)


def test_a_want_names_what_decides_its_run_and_nothing_else(config):
    assert labeler(config).key == labeler(replace(config, split="large", target="panoptic")).key
    assert labeler(config).key != labeler(replace(config, seed=1)).key
    stricter = replace(config, label=replace(config.label, threshold=0.7))
    assert Want("label", config, labeler(config)).key == Want("label", stricter, labeler(config)).key
    assert warmup(config).key != warmup(stricter).key
    longer = definitions.lengths(config, "warmup", 4)
    tuned = [definitions.finetuned(each, warmup(config)).key for each in (config, longer)]
    assert tuned[0] == tuned[1]  # the warm-up it starts from is its source, not its own length
    assert (
        definitions.finetuned(config).key != definitions.finetuned(longer).key
    )  # but the baseline is trained as long as both


def test_lengths_are_fifths_of_the_warm_up_and_thirds_of_the_finetuning(config):
    cells = named(4, config)
    cell = cells["2x"]["4x"].want
    assert cell.config.finetune.steps == round(5000 * 2 / 3) and cell.source.config.warmup.steps == 8000
    assert cells["3x"]["5x"].want.key == named(2, replace(config))["Objects (P,A)"]["finetuned det AP"].want.key


def test_a_coarser_profile_leaves_cells_out():
    demo = resolve(profile="demo")
    assert {row: sorted(cells) for row, cells in named(4, demo).items()} == {
        "1x": ["1x", "3x", "5x"], "2x": [], "3x": ["1x", "3x", "5x"], "4x": [], "5x": ["1x", "3x", "5x"]
    }  # fmt: skip


def test_augmentation_of_warm_up_and_finetuning_are_apart(config):
    cells = named(6, config)
    mixed = cells["strong"]["weak, finetuned det AP"].want
    assert (mixed.config.augment.kind, mixed.source.config.augment.kind) == ("strong", "weak")
    assert {want.config.augment.kind for want in wants(ROWS[6](config)) if want.verb == "train_labeler"} == {"weak"}
    assert sum(want.verb == "label" for want in wants(ROWS[6](config))) == 1


# ---- finding and making ----


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path))
    return tmp_path


def small_rows():
    """A warm-up and a labeler, of a chain that the smoke profile makes in seconds."""
    config = resolve(profile="smoke")
    found = warmup(config)
    return [definitions.Row("a", {"AP": definitions.Cell(found, "box_agnostic")})], found


def test_missing_runs_are_made_in_order_and_found_again(store, monkeypatch, capsys):
    rows, want = small_rows()
    needed = wants(rows)
    assert [w.verb for w in needed] == ["train_labeler", "label", "warm_up"]
    assert all(runner.find(needed)[each] is None for each in needed)
    assert runner.make(needed, jobs=2) == []
    found = runner.find(needed)
    assert found[want].result["inputs"] == {"labels": found[needed[1]].id}
    said = capsys.readouterr().err
    assert "3 runs are wanted, 0 are there" in said and found[want].id in said
    monkeypatch.setattr(runner, "_make", None)  # nothing is made again
    assert runner.make(needed) == []


def test_processes_share_the_runs(store, monkeypatch):
    """Two makers at once: each begins what the other does not make, so that they meet at the barrier every time."""
    config = resolve(profile="smoke")
    needed = [labeler(replace(config, seed=seed)) for seed in range(4)]
    folders = {want.key: runner._begun(want, None).folder for want in needed}
    meet, pairs = threading.Barrier(2, timeout=60), []

    def run(want, source, *rest):
        if runner._existing(want, source):
            return 0, ""
        (folders[want.key] / "result.json").write_text(json.dumps({"metrics": {}, "stage": "labeler"}))
        pairs.append(want.config.seed)
        meet.wait()
        return 0, ""

    monkeypatch.setattr(runner, "_make", run)
    with ThreadPoolExecutor(2) as threads:
        failures = list(threads.map(lambda _: runner.make(needed), range(2)))
    assert failures == [[], []] and sorted(pairs) == [0, 1, 2, 3]


def test_a_claimed_run_is_passed_over_and_at_last_waited_for(store):
    config = resolve(profile="smoke")
    first, second = labeler(config), labeler(replace(config, seed=1))
    found = runner.find([first, second])
    with runner._claimed(first, None, wait=False) as held:
        assert held
        picked, claim = runner._pick([first, second], found, wait=False)
        assert picked == second
        claim.close()
        assert runner._pick([first], found, wait=False) is None
    picked, claim = runner._pick([first], found, wait=True)
    assert picked == first
    claim.close()


def test_missing_data_of_one_run_fails_that_run_alone(store, monkeypatch, capsys):
    """Table 7 where the images of one split are not there: the others are made, and what is there is shown."""
    config, stage = resolve(profile="smoke"), runner.stage

    def without_large(want, source, *, existing):
        if want.verb == "label" and want.config.split == "large":
            raise DataError("split='large' needs images that are not there")
        return stage(want, source, existing=existing)

    monkeypatch.setattr(runner, "stage", without_large)
    teacher = labeler(config)
    needed = [teacher, *(Want("label", replace(config, split=split), teacher) for split in ("tiny", "large"))]
    (failure,) = runner.make(needed, apart=False)
    assert "split='large' needs images" in failure.reason
    assert [bool(runner.find(needed)[want]) for want in needed] == [True, True, False]


def test_a_run_costs_its_steps_or_the_images_it_labels():
    """By hand: 118,287 images in batches of 16 are 7,393 steps an epoch; the paper's 36 + 60 epochs on 123,403."""
    config = resolve(profile="paper", split="tiny")
    images = {"labeled": 118_287, "pool": 123_403, "warmup": 123_403}
    short, long = math.ceil(36 * 118_287 / 16), math.ceil(60 * 123_403 / 16)
    assert runner.work_of(labeler(config), images) == short
    assert runner.work_of(warmup(config), images) == long
    assert runner.work_of(warmup(config).source, images) == 123_403
    assert runner.work_of(definitions.finetuned(config), images) == long + short


@pytest.mark.parametrize("profile", ["demo", "gpu", "paper"])
@pytest.mark.parametrize("table", ROWS)
def test_no_two_runs_are_said_to_be_the_same(table, profile):
    said = [(want.verb, definitions.variation(want)) for want in wants(ROWS[table](resolve(profile=profile)))]
    assert len(set(said)) == len(said)


@pytest.mark.parametrize(
    "more, said",
    [
        (["3", "--split", "large"], "do not set split"),
        (["3", "--annotation", "objects"], "do not set annotation"),
        (["7", "--unlabeled", "."], "Table 7 compares the four splits"),
    ],
)
def test_what_would_not_be_a_table_of_the_profile_is_refused(more, said, store, monkeypatch, capsys):
    monkeypatch.setattr(runner, "make", None)
    assert main(["table", *more, "--profile", "smoke", "--record"]) == 2
    assert said in capsys.readouterr().err


def test_labels_of_others_are_refused(store):
    asked = argparse.Namespace(tables=["3"], seeds=1, record=False, dry_run=False)
    with pytest.raises(ConfigError, match="labels='mine': tables are of the labels that their own labelers make"):
        table.act(asked, replace(resolve(profile="smoke"), labels="mine"))


def test_fewer_numbers_do_not_replace_more(store, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(runner, "make", lambda *_, **__: [])
    monkeypatch.setattr(readme, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    file = tmp_path / "results" / "table3_smoke.json"
    file.write_text(json.dumps({"rows": {"12 (1x)": {"AP": {"0": 0.4}}}}))
    before = file.read_bytes()
    assert main(["table", "3", "--profile", "smoke", "--record"]) == 2
    assert "has 1 numbers, and there are 0 now" in capsys.readouterr().err and file.read_bytes() == before


def test_box_only_tables_ask_for_no_panoptic_run():
    verbs = wants(ROWS[2](resolve(profile="smoke", masks=False)))
    assert all(want.config.target == "instances" for want in verbs)


@pytest.mark.parametrize("apart", [True, False])
def test_a_failed_run_takes_only_what_starts_from_it(apart, store, monkeypatch):
    config = resolve(profile="smoke")
    good, bad = warmup(config), labeler(replace(config, seed=1))
    after = Want("label", config, bad)
    made = []

    def run(want, source, *rest):
        made.append(want.verb)
        if want.key == bad.key:
            return 1, "out of memory"
        folder = store / f"{want.verb}-{len(made)}"
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps({"metrics": {}, "stage": want.verb}))
        return 0, ""

    there = {}
    monkeypatch.setattr(runner, "_make", run)
    monkeypatch.setattr(runner, "_make_here", run)
    monkeypatch.setattr(runner, "_begun", lambda want, source: None)
    monkeypatch.setattr(
        runner, "_existing", lambda want, source: there.setdefault(want.key, Run(store)) if made else None
    )
    failures = runner.make([*good.with_sources(), bad, after], apart=apart)
    assert [(failure.want.verb, failure.reason) for failure in failures] == [
        ("train_labeler", "out of memory"),
        ("label", "the run that it starts from could not be made"),
    ]
    assert sorted(made) == ["label", "train_labeler", "train_labeler", "warm_up"]


def test_numbers_are_collected_and_missing_ones_stay_none(store, monkeypatch):
    config = resolve(profile="smoke")
    collected = runner.collect(1, config, [0, 1])
    assert collected["rows"]["COCO unlabeled"] == {
        "class-specific AP": {"0": None, "1": None},
        "class-agnostic AP": {"0": None, "1": None},
    }
    assert collected["runs"] == {"0": {}, "1": {}} and collected["config"]["profile"] == "smoke"
    body = compare.lines(collected)
    assert body[0] == ["COCO train2017", "class-specific AP", "41.0", "", ""]


def test_the_dry_run_lists_and_makes_nothing(store, capsys):
    assert main(["table", "3", "--profile", "smoke", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("missing  ") == 4 and "4 runs, 4 missing" in said
    assert not list(store.glob("*/result.json"))


@pytest.mark.parametrize("wrong, message", [("8", "table '8' has no rows here"), ("x", "table 'x' has no rows")])
def test_a_table_that_is_not_there_is_refused(wrong, message, capsys):
    assert main(["table", wrong, "--profile", "smoke"]) == 2
    assert message in capsys.readouterr().err


def test_tables_of_entities_are_of_entities_by_default(store, capsys):
    """Tables 3 to 7 and 9 are of entities in the paper; objects where they are asked for."""
    assert main(["table", "3", "--profile", "smoke", "--dry-run"]) == 0
    assert "objects" not in capsys.readouterr().out
    assert main(["table", "3", "--profile", "smoke", "--dry-run", "--annotation", "objects"]) == 0
    assert "entities" not in capsys.readouterr().out
    for number in (3, 4, 5, 6, 7, 9):
        (file,) = (paths.REPOSITORY / "notebooks").glob(f"1{number}_table*.ipynb")
        assert 'annotation: str = \\"entities\\"' in file.read_text(), file.name


# ---- numbers beside the paper's ----

GAP = "class-agnostic pseudo labels have a smaller quality gap than class-specific ones"


def test_mean_spread_and_gap():
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
        ([2.0, -1.0, 1.5], "undecided"),  # mean 0.83, reach 4.30 * 1.61 / 1.73 = 4.0
        ([0.0, 0.0], "undecided"),
    ],
)
def test_a_claim_is_decided_by_paired_differences(differences, verdict):
    assert compare.verdict(differences) == verdict


def test_claims_are_those_of_rows_that_the_tables_have(config):
    for table, _, *pair in compare.CLAIMS:
        rows = named(table, config)
        assert all(column in rows[row] for row, column in filter(None, pair)), (table, pair)
    found = {each["claim"]: each for each in compare.claims({})}
    assert all(each["verdict"] == "not measured" for each in found.values())
    assert found["class-agnostic pseudo labels are a better warm-up than class-specific ones"]["paper"] == pytest.approx(1.0)
    assert found[GAP]["paper"] == pytest.approx(5.1 - 1.9)


def test_pairs_are_of_the_same_seed():
    rows = {"Objects (P,A)": {"finetuned det AP": {"0": 0.5, "1": None, "2": 0.4}}}
    rows["ImageNet"] = {"finetuned det AP": {"0": 0.4, "1": 0.1, "2": 0.45}}
    first, second = (("Objects (P,A)", compare.DET), ("ImageNet", compare.DET))
    assert compare.paired(rows, first, second) == pytest.approx({"0": 10, "2": -5})


def test_the_gaps_of_table_1_are_of_the_same_seed():
    """By hand: seed 0 (50 - 40) - (60 - 58) = 8; seed 1 has no number without classes."""
    names = ("class-specific AP", "class-agnostic AP")
    truth, pseudo = ({"0": 0.5, "1": 0.6}, {"1": None, "0": 0.6}), ({"0": 0.4, "1": 0.3}, {"0": 0.58, "1": 0.2})
    rows = {
        "COCO train2017": dict(zip(names, truth, strict=True)),
        "COCO unlabeled": dict(zip(names, pseudo, strict=True)),
    }
    (claim,) = compare.claims({1: {"rows": rows}}, 1)
    assert claim["differences"] == pytest.approx([8])


def test_curves_are_where_the_tables_say():
    rows = {"12 (1x)": {"AP": {"0": 0.40, "1": 0.44}}, "24 (2x)": {}, "60 (5x)": {"AP": {"0": 0.5, "1": None}}}
    labelers = {"pseudo labeler": {"1": {"0": 0.30}, "5": {"0": 0.4}}, "warmed-up target detector": {"1": {"0": 0.35}}}
    assert all(not line["here"] for panel in compare.curves({}) for line in panel["lines"].values())
    found = compare.curves({3: {"rows": rows}, 5: {"rows": labelers}})
    lengths, pools, labeler, thresholds = (panel["lines"] for panel in found)
    assert np.allclose(lengths[compare.WARM]["here"], [(12, 42), (60, 50)])
    assert lengths[compare.WARM]["paper"][:2] == [(12, 38.4), (24, 39.6)]
    assert np.allclose(labeler[compare.WARM]["here"], [(30, 35)])
    assert labeler[compare.WARM]["paper"][-1] == (42.1, 40.2)
    assert pools[compare.DET]["here"] == thresholds[compare.DET]["here"] == []
