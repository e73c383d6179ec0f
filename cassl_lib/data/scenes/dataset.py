"""The embedded scenes as a COCO dataset on disk, written once, unit by unit.

    images/<unit>/<id>.jpg
    annotations/instances_<unit>.json, panoptic_<unit>.json, panoptic_<unit>/<id>.png   train, val, tune
    annotations/image_info_<unit>.json                                                  the unlabeled units
    annotations/truth_<unit>.json       ground truth of the unlabeled units: to measure pseudo labels, never to train
    manifest.json                       the spec, and the file count and hashes of each finished unit

Instance and panoptic masks hold visible pixels only. Unnamed kinds are annotated only in the ground truth of unlabeled
units; in the panoptic maps of labeled units their pixels are void. A unit is finished once the manifest lists it.
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

from cassl_lib import deadline
from cassl_lib.data.scenes.kinds import NAMED
from cassl_lib.data.scenes.records import UnitRecords, as_png, panoptic_segments
from cassl_lib.data.scenes.scene import LABELED, POOLS, UNITS, Scene, SceneSpec, draw_scene
from cassl_lib.errors import SceneError
from cassl_lib.files import alone, folder_beside, write_atomically

VERSION = 2  # of the drawing; raise it whenever the same spec gives other pixels or annotations
CLASSES = tuple(kind.name for kind in NAMED)
_POOLS = tuple(f"pool_{part}" for part in range(POOLS))
# DEVIATES: each pool contains the smaller ones, at the paper's ratios, 1 : 5.6 : 15 : 31, and all scenes look like the
# labeled ones, so that only their number differs. The paper's larger pools come from other sources; scenes of other
# looks are pools of their own, as large as base.
SPLITS: dict[str, tuple[str, ...]] = {
    "tiny": _POOLS[:1],
    "small": _POOLS[:2],
    "base": _POOLS[:3],
    "large": _POOLS,
    "places": ("places",),
    "openimages": ("openimages",),
}


@dataclass(frozen=True)
class SceneFiles:
    """Paths of the files of each unit; they need not exist."""

    root: Path

    def images(self, unit: str) -> Path:
        return self.root / "images" / unit

    def instances(self, unit: str) -> Path:
        return self.root / "annotations" / f"instances_{unit}.json"

    def panoptic(self, unit: str) -> tuple[Path, Path]:
        """The JSON file and the folder of PNGs."""
        folder = self.root / "annotations" / f"panoptic_{unit}"
        return folder.with_suffix(".json"), folder

    def image_info(self, unit: str) -> Path:
        return self.root / "annotations" / f"image_info_{unit}.json"

    def ground_truth(self, unit: str) -> Path:
        return self.root / "annotations" / f"truth_{unit}.json"

    def fingerprint(self, unit: str) -> str:
        """Hash of the drawn pixels and the JSON files; it does not depend on the JPEG encoder."""
        return _read_manifest(self.root)["units"][unit]["content"]

    def _all(self, unit: str) -> list[Path]:
        """Every file and folder that belongs to a unit."""
        if unit in LABELED:
            return [self.images(unit), self.instances(unit), *self.panoptic(unit)]
        return [self.images(unit), self.image_info(unit), self.ground_truth(unit)]


def prepare(
    root: Path, spec: SceneSpec, units: Sequence[str], *, progress: bool = True, verify: bool = False
) -> SceneFiles:
    """Write those of `units` that are missing or incomplete under `root`.

    Several processes may call this at once: one writes, the others wait. After a kill, the next call resumes with the
    first unfinished unit.

    Args:
        verify: read every file and rewrite damaged units.

    Raises:
        SceneError: an unknown unit, or `root` holds scenes of another spec.
    """
    files = SceneFiles(Path(root))
    if unknown := [unit for unit in units if unit not in UNITS]:
        raise SceneError(f"unknown unit of scenes: {', '.join(unknown)}. Choose from {', '.join(UNITS)}.")
    if not verify and not _missing(files, spec, units):
        return files  # without the lock, so that a read-only folder works
    files.root.mkdir(parents=True, exist_ok=True)
    with alone(files.root, say=progress):
        if verify:
            _unlist(files.root, _damaged(files, units))
        for unit in _missing(files, spec, units):
            _write_unit(files, spec, unit, progress)
    return files


def redraw(spec: SceneSpec, image_id: int) -> Scene:
    """Draw the scene of an image id again; the id is also the stem of the image's file name."""
    unit, index = divmod(image_id, 1_000_000)
    return draw_scene(spec, UNITS[unit - 1], index)


def verify(root: Path) -> list[str]:
    """Check every file under `root` against the recorded hashes.

    Returns:
        The finished units.

    Raises:
        SceneError: names the damaged units.
    """
    files = SceneFiles(Path(root))
    units = list(_read_manifest(files.root)["units"])
    if damaged := _damaged(files, units):
        names = ", ".join(damaged)
        raise SceneError(f"{files.root}: units are damaged: {names}. Rewrite them with prepare(..., verify=True).")
    return units


def _missing(files: SceneFiles, spec: SceneSpec, units: Sequence[str]) -> list[str]:
    manifest = _read_manifest(files.root)
    if manifest["spec"] not in (None, _spec_as_json(spec)):
        wanted, present = _spec_as_json(spec), manifest["spec"]
        names = sorted(name for name in {*wanted, *present} if wanted.get(name) != present.get(name))
        raise SceneError(
            f"{files.root}: the scenes there differ in {', '.join(names)}. Use another folder or delete this one."
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
    write_atomically(root / "manifest.json", json.dumps(manifest, indent=1).encode())


def _unlist(root: Path, units: Sequence[str]) -> None:
    manifest = _read_manifest(root)
    kept = {unit: entry for unit, entry in manifest["units"].items() if unit not in units}
    if len(kept) < len(manifest["units"]):
        _write_manifest(root, {**manifest, "units": kept})


def _write_unit(files: SceneFiles, spec: SceneSpec, unit: str, progress: bool) -> None:
    """Draw a unit into a temporary folder, move its files into place, then list it in the manifest."""
    with folder_beside(files.root / unit) as folder:
        partial = SceneFiles(folder)
        content = _draw_unit(partial, spec, unit, progress)
        entry = {"content": content, "bytes": _hash_files(partial, unit), "files": _count(partial, unit)}
        _unlist(files.root, [unit])
        for drawn, target in zip(partial._all(unit), files._all(unit), strict=True):
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(drawn, target)
    finished = {**_read_manifest(files.root)["units"], unit: entry}
    _write_manifest(files.root, {"spec": _spec_as_json(spec), "units": finished})


def _draw_unit(files: SceneFiles, spec: SceneSpec, unit: str, progress: bool) -> str:
    """Write all files of a unit and return the hash of its pixels and JSON files.

    Raises:
        Stopped: the deadline has passed; nothing is written.
    """
    deadline.check(f"drawing {unit}")
    for path in files._all(unit):
        (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
    digest, records = hashlib.sha256(), UnitRecords(unit)
    indices = range(unit_size(spec, unit))
    for index in tqdm(indices, desc=f"drawing {unit}", unit="scene", mininterval=1, disable=not progress):
        scene = draw_scene(spec, unit, index)
        stem = records.add_image(index, scene)
        digest.update(scene.image.tobytes())
        # 4:4:4, because chroma subsampling would blur the hue of a core of three pixels
        Image.fromarray(scene.image).save(files.images(unit) / f"{stem}.jpg", quality=92, subsampling=0)
        if unit in LABELED:
            ids, segments = panoptic_segments(scene)
            records.add_panoptic(stem, segments)
            digest.update(ids.tobytes())
            Image.fromarray(as_png(ids)).save(files.panoptic(unit)[1] / f"{stem}.png", compress_level=3)
    if unit in LABELED:
        jsons = {files.instances(unit): records.instances(), files.panoptic(unit)[0]: records.panoptic_json()}
    else:
        jsons = {files.image_info(unit): records.image_info(), files.ground_truth(unit): records.ground_truth()}
    for path, data in jsons.items():
        path.write_text(json.dumps(data, separators=(",", ":")))
        digest.update(path.read_bytes())
    return digest.hexdigest()


def unit_size(spec: SceneSpec, unit: str) -> int:
    """Number of scenes of a unit."""
    name, _, part = unit.partition("_")
    return spec.pool[int(part)] if part else getattr(spec, name)
