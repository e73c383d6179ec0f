"""Damaged files of cassl's own: a pool's index, a store's manifest and shards, a configuration, recorded results."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st
from mutations import damaged, json_files
from PIL import Image
from pycocotools import mask as mask_api
from recorded import PLAN_CHECK, recorded_chain, recorded_table

from cassl_lib.data.pool.build import build_pool
from cassl_lib.data.pool.index import Pool
from cassl_lib.labels.shards import finish, write_shard
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.report import blocks, chain, claims, readme, tables
from cassl_lib.report.report import csv_text
from cassl_lib.resolve import read_config, resolve, to_json
from cassl_lib.stages import requests
from cassl_lib.tables import compare, results
from cassl_lib.tables.summary import paragraph

CELLS = [None, 0, -1, 1, 2**31 - 1, 2**40, "", "x", "../x", "/etc/passwd", 1.5, True, [1]]


def pool_index(folder: Path):
    """Values, columns and bytes of a pool's Parquet index."""
    (folder / "images").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{number}.png")
    made = build_pool([str(folder / "images")], folder / "pools")
    table, plain, file = pq.read_table(made.index), made.index.read_bytes(), folder / "index.parquet"

    def check(content: bytes) -> None:
        file.write_bytes(content)
        pool = Pool(file)
        rows = [pool.row(index) for index in range(len(pool))]
        ids = [pool.image_id(index) for index in range(len(pool))]
        assert rows == pq.read_table(file).to_pylist(), "other rows"
        assert len(set(ids)) == len({row["path"] for row in rows}) == len(rows), "a repeated id or path is accepted"
        assert all(value is not None for row in rows for value in row.values()), "a missing value is accepted"
        assert all(row["height"] > 0 and row["width"] > 0 for row in rows), "an image without pixels is accepted"

    @st.composite
    def tables(draw) -> bytes:
        rows, schema = table.to_pylist(), table.schema
        for _ in range(draw(st.integers(1, 2))):
            action, row = (
                draw(st.sampled_from(["cell", "cell", "repeat", "delete", "column", "type"])),
                draw(st.integers(0, len(rows) - 1)),
            )
            name = draw(st.sampled_from(schema.names))
            if action == "cell":
                rows[row][name] = draw(st.sampled_from(CELLS))
            elif action == "repeat":
                rows.append(dict(rows[row]))
            elif action == "delete" and len(rows) > 1:
                del rows[row]
            elif action == "column" and len(schema) > 1:
                schema = schema.remove(schema.get_field_index(name))
            elif action == "type":
                schema = schema.set(schema.get_field_index(name), pa.field(name, draw(st.sampled_from(TYPES))))
        return written(rows, schema)

    return st.one_of(tables(), damaged(plain)), check


TYPES = [pa.string(), pa.int64(), pa.float64(), pa.binary(), pa.int8()]


def written(rows: list[dict], schema: pa.Schema) -> bytes:
    """The rows as Parquet; a cell that does not fit its column is missing there."""
    columns = []
    for field in schema:
        cells = []
        for row in rows:
            try:
                cells.append(pa.scalar(row[field.name], field.type))
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                cells.append(pa.scalar(None, field.type))
        columns.append(pa.array([cell.as_py() for cell in cells], field.type))
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), buffer)
    return buffer.getvalue()


def manifest(folder: Path):
    """The manifest of a store, and one of its shards."""
    store, other = folder / "store", folder / "other"
    for place in (store, other):
        for number in range(2):
            rows = [
                {
                    "image_id": 10 * number + n,
                    "file_name": f"{10 * number + n}.png",
                    "height": 20,
                    "width": 30,
                    "scores": [0.9, 0.4][: n + 1],
                    "boxes": [[1, 2, 5, 6], [7.5, 3, 9, 10]][: n + 1],
                    "rles": [mask_api.encode(np.ones((20, 30), np.uint8, order="F"))] * (n + 1),
                }
                for n in range(2)
            ]
            write_shard(place, number, rows, "labeler-1")
        finish(place, labeler="labeler-1", pool="pool-1")
    file = store / "manifest.json"
    shard = sorted(store.glob("*.arrow"))[0]
    plain, bytes_of_shard = file.read_bytes(), shard.read_bytes()

    def read() -> list[tuple]:
        opened = PseudoLabelStore(store, threshold=-1.0)
        opened.verify()
        flat = opened.flat()
        items = [
            (item["image_id"], item["file_name"], item["boxes"].tolist(), item["scores"].tolist(), len(item["rles"]))
            for item in (opened[index] for index in range(len(opened)))
        ]
        assert [item[0] for item in items] == flat["image_id"].tolist()
        assert opened.categories and opened.fingerprint and isinstance(opened.labeler, str)
        names = [category["name"] for category in opened.categories]
        assert all(names[label] for label in flat["labels"])
        assert isinstance(opened.unreadable, list) and repr(opened) and opened._repr_html_()
        return items

    expected = read()

    def check(case: tuple[str, bytes]) -> None:
        file.write_bytes(case[1] if case[0] == "manifest" else plain)
        shard.write_bytes(case[1] if case[0] == "shard" else bytes_of_shard)
        assert read() == expected, "other labels"

    manifests = json_files(json.loads(plain)).map(lambda content: ("manifest", content))
    shards = damaged(bytes_of_shard).map(lambda content: ("shard", content))
    return st.one_of(manifests, manifests, manifests, shards), check


def config(folder: Path):
    """A run's config.json."""
    file = folder / "config.json"

    def check(content: bytes) -> None:
        file.write_bytes(content)
        read = read_config(file)
        assert {**json.loads(json.dumps(to_json(read)))} == merged(json.loads(content), to_json(read)), "other settings"
        for request in requests.chain(read).values():
            assert request.title and requests.describe(request)
        assert str(read) and read._repr_html_()

    return json_files(json.loads(json.dumps(to_json(resolve(profile="smoke"))))), check


def merged(given: dict, read: dict) -> dict:
    """What a file says, completed by the defaults of settings that it does not have."""
    whole = json.loads(json.dumps(read))
    for name, value in given.items():
        whole[name] = whole[name] | value if isinstance(value, dict) else value
    return whole


def recorded(folder: Path):
    """Recorded tables, chains and measurements, as the report reads and renders them."""
    table, summary = recorded_table(), recorded_chain()
    documents = {"table3_demo": table, "chain_demo_large_seed0": summary, "plan_check_demo_tiny": PLAN_CHECK}

    def check(case: tuple[str, bytes]) -> None:
        name, content = case
        for stem, document in documents.items():
            (folder / f"{stem}.json").write_bytes(content if stem == name else json.dumps(document).encode())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(results, "RESULTS", folder)
            collected = results.recorded("demo")[3]
            assert collected == json.loads((folder / "table3_demo.json").read_bytes()), "other content"
            assert compare.text(collected) and compare.html(collected) and compare.markdown(collected)
            assert csv_text(collected).count("\n") > 1
            for make in (chain.seeds, chain.pseudo_labels, claims.table, readme.plan, tables.baseline_lengths):
                assert blocks.markdown(make()) and blocks.html(make())
            (only,) = results.chains("demo", "large")
            assert paragraph(summary, [only, only])

    strategies = [
        json_files(document).map(lambda file, name=name: (name, file)) for name, document in documents.items()
    ]
    return st.one_of(*strategies), check
