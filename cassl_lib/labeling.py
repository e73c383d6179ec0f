"""Stage 2's loop: a labeler over a pool, shard by shard; a killed process loses at most the shard in progress."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist
from tqdm import tqdm

from cassl_lib import engine
from cassl_lib.config import Config
from cassl_lib.data.loader import Samples, batches, in_turn
from cassl_lib.evaluation.model import encode_masks
from cassl_lib.pseudo_labels import finish, finished_shards, write_shard


def label_pool(model, samples: Samples, store: Path, *, config: Config, labeler: str) -> None:
    """Label every image of `samples` into the store at `store`; finished shards stay as they are.

    Every process takes each w-th shard. Detections below `config.label.keep` are not stored; an image that cannot be
    read has no row.
    """
    size, (rank, world) = config.label.shard_size, engine.rank_and_world()
    number = -(-len(samples) // size)
    done = finished_shards(store, labeler)
    todo = [shard for shard in range(rank, number, world) if shard not in done]
    for shard in tqdm(todo, desc="labelling", unit="shard", disable=engine.quiet(rank)):
        indices = range(shard * size, min((shard + 1) * size, len(samples)))
        write_shard(store, shard, image_rows(model, samples, indices, config), labeler)
    if dist.is_initialized():
        dist.barrier()
    if rank == 0:
        finish(store, labeler=labeler, pool=samples.source.fingerprint, shards=number)


def image_rows(model, samples: Samples, indices: range, config: Config) -> list[dict]:
    """The store's rows of these images of the pool."""
    pool = samples.source
    facts = {(row := pool.row(index))["id"]: row for index in indices}
    loader = batches(samples, in_turn(indices, config.label.batch_size), workers=config.labeler.workers)

    def size_of(image_id: int) -> tuple[int, int]:
        return facts[image_id]["height"], facts[image_id]["width"]

    rows = []
    for image_id, found, _ in engine.predict(model, loader, sizes=size_of, config=config.labeler, title=None):
        if image_id is None:
            continue
        keep = found["scores"] >= config.label.keep
        row = {"image_id": image_id, "file_name": facts[image_id]["path"]}
        row |= dict(zip(("height", "width"), size_of(image_id), strict=True))
        row |= {name: found[name][keep] for name in ("boxes", "scores", "labels")}
        if "masks" in found:
            row["rles"] = encode_masks(found["masks"][keep])
        rows.append(row)
    return rows
