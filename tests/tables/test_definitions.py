"""Requests of all tables: shared by tables, unique by key and by run, and built without reading data."""

from dataclasses import replace

import pytest
from table_requests import cells_of, needed, with_runs

from cassl_lib import paths
from cassl_lib.errors import ConfigError
from cassl_lib.resolve import resolve
from cassl_lib.runs import run_id
from cassl_lib.stages.identity import identity
from cassl_lib.stages.registry import STAGES
from cassl_lib.stages.requests import baseline, describe, finetune, pseudo_labeler, pseudo_labels, warmup
from cassl_lib.tables import compare, definitions
from cassl_lib.tables.definitions import ROWS, requests_of


def test_a_run_that_tables_share_is_requested_once(config):
    """The default chain is in all tables: pseudo labeler, labels, warm-up of 5 fifths, finetuning of 3 thirds."""
    default = warmup(config)
    for table in (2, 3, 4, 5, 6, 7, 9):
        assert default in needed(table, config), table
    everything = requests_of([row for table in ROWS for row in ROWS[table](config)])
    assert len({request.key for request in everything}) == len(everything)
    # 5 lengths; 4 weaker pseudo labelers; with classes; entities; strong; 3 larger pools; 5 thresholds; 2 shifted pools
    assert sum(request.stage == "warmup" for request in everything) == 5 + 4 + 1 + 1 + 1 + 3 + 5 + 2
    stages = [request.stage for request in everything]
    assert stages == sorted(stages, key=list(STAGES).index)


def test_the_key_holds_what_decides_the_run_and_nothing_else(config):
    assert pseudo_labeler(config).key == pseudo_labeler(replace(config, split="large", target="panoptic")).key
    assert pseudo_labeler(config).key != pseudo_labeler(replace(config, seed=1)).key
    stricter = replace(config, pseudo_labels=replace(config.pseudo_labels, threshold=0.7))
    labeler = pseudo_labeler(config)
    assert pseudo_labels(config, labeler).key == pseudo_labels(stricter, labeler).key
    assert warmup(config).key != warmup(stricter).key
    longer = definitions.lengths(config, "warmup", 4)
    tuned = [definitions.finetuned(each, warmup(config)).request.key for each in (config, longer)]
    assert tuned[0] == tuned[1]  # the warm-up that it starts from decides, not the length in its own configuration
    # Nor does it decide the baselines.
    assert definitions.finetuned(config).candidates == definitions.finetuned(longer).candidates
    assert definitions.finetuned(config).candidates == tuple(baseline(config, length) for length in (1, 4, 8))
    assert definitions.finetuned(config, warmup(config)).candidates == (finetune(config),)


def test_equal_keys_have_equal_identities_and_different_keys_different_runs():
    """All runs of all tables at the smoke profile, built anew by each cell that needs them."""
    config = resolve(profile="smoke")
    few = dict(config.scenes) | dict(train=4, val=4, pool=(4, 2, 2, 2), places=2, openimages=2)
    config = replace(config, scenes=tuple(few.items()), labeled_images=2)
    cells = [cell for table in ROWS for row in cells_of(table, config).values() for cell in row.values()]
    requests = {id(each): each for cell in cells for wanted in cell.candidates for each in wanted.with_inputs()}
    identities: dict[str, list[dict]] = {}
    for request in requests.values():
        identities.setdefault(request.key, []).append(identity(with_runs(request)))
    assert max(map(len, identities.values())) > 5 and len(identities) > 40
    for first, *others in identities.values():
        assert all(other == first for other in others)
    assert len({run_id(first) for first, *_ in identities.values()}) == len(identities)


@pytest.mark.parametrize("profile", ["smoke", "demo", "gpu", "paper"])
@pytest.mark.parametrize("table", ROWS)
def test_requests_are_built_without_reading_data(table, profile, store, monkeypatch):
    """Neither COCO nor scenes are on disk."""
    monkeypatch.setenv("CASSL_DATASETS", str(store.parent / "datasets"))
    config = resolve(profile=profile, annotation="entities")
    if table not in definitions.applicable(config):
        with pytest.raises(ConfigError, match="leave it out"):
            needed(table, config)
        return
    requests = needed(table, config)
    assert requests and all(request.key and describe(request) and request.title for request in requests)
    assert not list(store.parent.iterdir())


@pytest.mark.parametrize("profile", ["demo", "gpu", "paper"])
@pytest.mark.parametrize("table", ROWS)
def test_descriptions_are_unique_among_the_runs_of_a_stage(table, profile):
    if table not in definitions.applicable(resolve(profile=profile)):
        return
    described = [(request.stage, describe(request)) for request in needed(table, resolve(profile=profile))]
    assert len(set(described)) == len(described)


def test_claims_are_about_rows_that_the_tables_have(config):
    for table, _, *pair in compare.CLAIMS:
        rows = cells_of(table, config)
        assert all(column in rows[row] for row, column in filter(None, pair)), (table, pair)


def test_notebooks_of_tables_3_to_9_are_of_entities_as_in_the_paper():
    for table in (3, 4, 5, 6, 7, 9):
        (file,) = (paths.REPOSITORY / "notebooks").glob(f"1{table}_table*.ipynb")
        assert 'annotation: str = \\"entities\\"' in file.read_text(), file.name
