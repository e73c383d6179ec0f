"""The embedded scenes as a COCO dataset on disk, written once, unit by unit.

    images/<unit>/<id>.jpg
    annotations/instances_<unit>.json, panoptic_<unit>.json, panoptic_<unit>/<id>.png   train, val, tune
    annotations/image_info_<unit>.json                                                  the unlabeled units
    annotations/truth_<unit>.json       what is on the unlabeled images: to measure pseudo labels, never for training
    manifest.json                       the spec, and for each finished unit its counts and hashes

Masks are visible pixels only, in instances as in panoptic. Kinds without a name ('unnamed') stand only in the truth; in
the panoptic maps of a labeled unit their pixels are void. A unit counts as finished when the manifest lists it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from cassl_lib.data.scenes.kinds import NAMED
from cassl_lib.data.scenes.records import UnitRecords, as_png, panoptic_segments
from cassl_lib.data.scenes.scene import LABELED, PARTS, UNITS, Scene, SceneSpec, draw_scene
from cassl_lib.errors import SceneError
from cassl_lib.files import alone

VERSION = 1  # of the drawing: to be raised whenever the same spec gives other pixels or annotations
CLASSES = tuple(kind.name for kind in NAMED)
_PLACES, _OPENIMAGES = (tuple(f"{name}_{part}" for part in range(PARTS)) for name in ("places", "openimages"))
# UNSTATED: Sec. 4, what small, base and large consist of; inferred from the sizes the paper prints
SPLITS: dict[str, tuple[str, ...]] = {
    "tiny": ("coco",),
    "small": ("coco", *_PLACES[:3]),
    "base": _OPENIMAGES,
    "large": ("coco", *_PLACES, *_OPENIMAGES),
}


@dataclass(frozen=True)
class SceneFiles:
    """Where the files of a unit are; cheap to make, and says nothing about whether they exist."""

    root: Path

    def images(self, unit: str) -> Path:
        return self.root / "images" / unit

    def instances(self, unit: str) -> Path:
        return self.root / "annotations" / f"instances_{unit}.json"

    def panoptic(self, unit: str) -> tuple[Path, Path]:
        """The JSON and the folder of PNGs."""
        folder = self.root / "annotations" / f"panoptic_{unit}"
        return folder.with_suffix(".json"), folder

    def image_info(self, unit: str) -> Path:
        return self.root / "annotations" / f"image_info_{unit}.json"

    def truth(self, unit: str) -> Path:
        return self.root / "annotations" / f"truth_{unit}.json"

    def fingerprint(self, unit: str) -> str:
        """Hash of the pixels as drawn and of the JSON, so that another JPEG encoder does not change it."""
        return _read_manifest(self.root)["units"][unit]["content"]

    def _all(self, unit: str) -> list[Path]:
        """Every file and folder that belongs to a unit."""
        if unit in LABELED:
            return [self.images(unit), self.instances(unit), *self.panoptic(unit)]
        return [self.images(unit), self.image_info(unit), self.truth(unit)]


def prepare(
    root: Path, spec: SceneSpec, units: Sequence[str], *, progress: bool = True, verify: bool = False
) -> SceneFiles:
    """Make sure that `units` are under `root`; only what is missing or incomplete is written.

    Any number of processes may ask at once: one writes, the others wait. Killed at any moment, the next call goes on
    with the first unit that is not finished. With `verify` every byte is read and a damaged unit is written again.
    """
    files = SceneFiles(Path(root))
    if unknown := [unit for unit in units if unit not in UNITS]:
        raise SceneError(f"no such unit: {', '.join(unknown)}; there are {', '.join(UNITS)}")
    if not verify and not _missing(files, spec, units):
        return files  # without the lock, so that a read-only folder will do
    files.root.mkdir(parents=True, exist_ok=True)
    with alone(files.root, say=progress):
        if verify:
            _forget(files.root, _damaged(files, units))
        for unit in _missing(files, spec, units):
            _write(files, spec, unit, progress)
    return files


def redraw(spec: SceneSpec, image_id: int) -> Scene:
    """The scene of an image id, which is also the stem of its file, from its number alone."""
    unit, index = divmod(image_id, 1_000_000)
    return draw_scene(spec, UNITS[unit - 1], index)


def verify(root: Path) -> list[str]:
    """Read every file under `root` and return the units; raise SceneError if one is not the bytes that were written."""
    files = SceneFiles(Path(root))
    units = list(_read_manifest(files.root)["units"])
    if damaged := _damaged(files, units):
        raise SceneError(f"{files.root}: damaged: {', '.join(damaged)}; prepare(..., verify=True) writes them again")
    return units


def _missing(files: SceneFiles, spec: SceneSpec, units: Sequence[str]) -> list[str]:
    manifest = _read_manifest(files.root)
    if manifest["spec"] not in (None, _spec_as_json(spec)):
        wanted, found = _spec_as_json(spec), manifest["spec"]
        names = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        raise SceneError(
            f"{files.root} holds scenes that differ in {', '.join(names)}; use another folder or delete it"
        )
    finished = manifest["units"]
    return [u for u in dict.fromkeys(units) if u not in finished or finished[u]["files"] != _count(files, u)]


def _damaged(files: SceneFiles, units: Sequence[str]) -> list[str]:
    finished = _read_manifest(files.root)["units"]
    return [unit for unit in units if unit in finished and finished[unit]["bytes"] != _hash_files(files, unit)]


def _count(files: SceneFiles, unit: str) -> int:
    return sum(len(os.listdir(p)) if p.is_dir() else p.is_file() for p in files._all(unit))


def _hash_files(files: SceneFiles, unit: str) -> str:
    digest = hashlib.sha256()
    for path in files._all(unit):
        for file in sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []:
            digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _spec_as_json(spec: SceneSpec) -> dict:
    return json.loads(json.dumps({"version": VERSION, **asdict(spec)}))


def _read_manifest(root: Path) -> dict:
    try:
        return json.loads((root / "manifest.json").read_text())
    except FileNotFoundError:
        return {"spec": None, "units": {}}


def _write_manifest(root: Path, manifest: dict) -> None:
    partial = root / "manifest.json.partial"
    with partial.open("w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, root / "manifest.json")


def _forget(root: Path, units: Sequence[str]) -> None:
    manifest = _read_manifest(root)
    kept = {unit: entry for unit, entry in manifest["units"].items() if unit not in units}
    if len(kept) < len(manifest["units"]):
        _write_manifest(root, {**manifest, "units": kept})


def _write(files: SceneFiles, spec: SceneSpec, unit: str, progress: bool) -> None:
    """Draw a unit into a folder beside its place, move it there, and only then list it as finished."""
    partial = SceneFiles(files.root / f".{unit}.partial")
    shutil.rmtree(partial.root, ignore_errors=True)  # what a killed process left
    content = _draw_unit(partial, spec, unit, progress)
    entry = {"content": content, "bytes": _hash_files(partial, unit), "files": _count(partial, unit)}
    _forget(files.root, [unit])
    for source, target in zip(partial._all(unit), files._all(unit), strict=True):
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
    shutil.rmtree(partial.root)
    finished = {**_read_manifest(files.root)["units"], unit: entry}
    _write_manifest(files.root, {"spec": _spec_as_json(spec), "units": finished})


def _draw_unit(files: SceneFiles, spec: SceneSpec, unit: str, progress: bool) -> str:
    """Write all files of a unit and return the hash of their content."""
    for path in files._all(unit):
        (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
    digest, records = hashlib.sha256(), UnitRecords(unit)
    indices = range(_size(spec, unit))
    for index in tqdm(indices, desc=f"drawing {unit}", unit="scene", mininterval=1, disable=not progress):
        scene = draw_scene(spec, unit, index)
        stem = records.add_image(index, scene)
        digest.update(scene.image.tobytes())
        # 4:4:4, or the hue of a core of three pixels would run into its surroundings
        Image.fromarray(scene.image).save(files.images(unit) / f"{stem}.jpg", quality=92, subsampling=0)
        if unit in LABELED:
            ids, segments = panoptic_segments(scene)
            records.add_panoptic(stem, segments)
            digest.update(ids.tobytes())
            Image.fromarray(as_png(ids)).save(files.panoptic(unit)[1] / f"{stem}.png", compress_level=3)
    if unit in LABELED:
        jsons = {files.instances(unit): records.instances(), files.panoptic(unit)[0]: records.panoptic_json()}
    else:
        jsons = {files.image_info(unit): records.image_info(), files.truth(unit): records.truth()}
    for path, data in jsons.items():
        path.write_text(json.dumps(data, separators=(",", ":")))
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _size(spec: SceneSpec, unit: str) -> int:
    source, _, part = unit.partition("_")
    return asdict(spec)[f"{source}_part" if part else source]
