"""Recorded outputs of the public CondInst on generated weights and images, and the generation of these inputs.

    python tests/models/recorded_condinst.py FOLDER

writes the .npz file next to this module from a folder of full records (7 MB; `test_reference` also compares with all
of it if it is present). The file holds small quantities in full and every STEP-th number of large ones. Weights and
images are regenerated from their rules and verified by checksums.
"""

import json
import os
import sys
import zlib
from pathlib import Path

import numpy as np

CARRIED = Path(__file__).with_suffix(".npz")
SHARED = Path(os.environ.get("CASSL_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data")).parent / "reference"
STEP = 101  # a prime, so that samples cover all channels, rows and columns
LARGE = 2_000
IMAGES = 3
SMALL_TYPES = {"labels": "u1", "classes": "u1", "locations": "u2", "fpn_levels": "u1", "mask_areas": "u4"}


def thin(array: np.ndarray, step: int) -> np.ndarray:
    return array.reshape(-1)[::step] if step > 1 and array.size > LARGE else array


def reduce(folder: Path, step: int) -> dict[str, np.ndarray]:
    """{name: numbers} of the full records; of large arrays every `step`-th number, flat."""
    full, inputs = np.load(folder / "condinst_r50.npz"), np.load(folder / "inputs.npz")
    positive = full["targets/pos_inds"]
    kept = {}
    for name in full.files:
        kind, last = name.split("/")[0], name.split("/")[-1]
        if last in ("std", "masks_shape", "soft_masks_first4_stride4", "candidates_before_nms"):
            continue
        if "grad8" in name and not name.endswith(("controller.bias", "scales.1.scale")):
            continue
        array = full[name]
        if last in ("reg_targets", "target_inds"):
            array = array[positive]
        if last == "masks_packed":
            array = array[: 2 if step > 1 else None] if "default" in name or step == 1 else array[:0]
        elif kind in ("eval", "train_bnfrozen"):
            array = thin(array, step)
        kept[name] = array.astype(SMALL_TYPES.get(last, array.dtype))
    kept["norm_batch"] = thin(inputs["norm_batch"], step)
    for i in range(IMAGES):
        image = inputs[f"image_{i}"]
        kept[f"image_crc_{i}"] = np.array(zlib.crc32(image.tobytes()))
        for name in ("boxes", "classes"):
            kept[f"{name}_{i}"] = inputs[f"{name}_{i}"]
        height, width = image.shape[1:]
        kept[f"masks_{i}"] = np.packbits(inputs[f"gt_bitmasks_full_{i}"][:, :height, :width], axis=None)
        kept[f"mask_targets_{i}"] = inputs[f"gt_bitmasks_{i}"]
    kept["sizes"], kept["out_sizes"] = inputs["sizes"], inputs["out_sizes"]
    kept["rules"] = np.frombuffer((folder / "condinst_r50.json").read_bytes(), np.uint8)
    return kept


def draw_weights(rules: np.ndarray) -> dict[str, np.ndarray]:
    """{AdelaiDet's name: array}, each drawn from a generator seeded by its name."""
    state = {}
    for rule in json.loads(rules.tobytes())["entries"]:
        if rule["kind"] == "const":
            values = np.asarray(rule["value"])
        else:
            noise = np.random.default_rng(zlib.crc32(rule["name"].encode())).standard_normal(rule["shape"])
            values = rule["mean"] + rule["scale"] * (np.abs(noise) if rule["kind"] == "absnorm" else noise)
        values = np.asarray(values, dtype=rule["dtype"]).reshape(rule["shape"])
        assert zlib.crc32(np.ascontiguousarray(values).tobytes()) == rule["crc"], (
            f"{rule['name']} differs from the recorded one"
        )
        state[rule["name"]] = values
    return state


def draw_image(i: int, size: tuple[int, int]) -> np.ndarray:
    """(3, height, width) uint8, BGR: waves, discs and bars with noise."""
    (height, width), random = size, np.random.default_rng(1000 + i)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    image = np.stack([110 + 60 * np.sin(x / (17 + 9 * c) + i) * np.cos(y / (23 + 5 * c)) for c in range(3)])
    for shape in range(14):
        cx, cy, radius = random.uniform(0, width), random.uniform(0, height), random.uniform(5, 70)
        color = random.uniform(0, 255, 3)
        disc = (x - cx) ** 2 + (y - cy) ** 2 < radius * radius
        inside = disc if shape % 2 else (abs(x - cx) < radius) & (abs(y - cy) < 0.6 * radius)
        image[:, inside] = 0.3 * image[:, inside] + 0.7 * color[:, None]
    return np.clip(np.round(image + random.normal(0, 12, image.shape)), 0, 255).astype(np.uint8)


def draw_images(recorded: dict) -> list[np.ndarray]:
    images = [draw_image(i, tuple(recorded["sizes"][i])) for i in range(IMAGES)]
    for i, image in enumerate(images):
        assert zlib.crc32(image.tobytes()) == recorded[f"image_crc_{i}"], f"image {i} differs from the recorded one"
    return images


def unpack_masks(recorded: dict, i: int) -> np.ndarray:
    shape = (len(recorded[f"boxes_{i}"]), *recorded["sizes"][i])
    return np.unpackbits(recorded[f"masks_{i}"], count=int(np.prod(shape))).reshape(shape)


if __name__ == "__main__":
    np.savez_compressed(CARRIED, **reduce(Path(sys.argv[1]), STEP))
    print(f"{CARRIED}: {CARRIED.stat().st_size:,} bytes")
