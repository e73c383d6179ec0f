"""The training loop and the test loop, on a detector small enough to compute by hand."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors import safe_open
from safetensors.torch import load_file

from cassl_lib.config import AugmentConfig, TrainConfig
from cassl_lib.data.coco import CocoImages
from cassl_lib.errors import NonFiniteLoss
from cassl_lib.evaluation.detector import detect, evaluate_detector
from cassl_lib.runs import Run
from cassl_lib.training import engine
from cassl_lib.training.engine import learning_rate, number_of_steps, predict, train

PLAIN = TrainConfig(
    steps=6,
    batch_size=16,
    learning_rate=0.1,
    optimizer="sgd",
    weight_decay=0.0,
    warmup_steps=0,
    milestones=(),
    clip_norm=0.0,
    workers=0,
    checkpoint_every=2,
    log_every=2,
)


class Line(torch.nn.Module):
    """Loss w * mean(images), plus noise from the random stream if asked for."""

    def __init__(self, noisy=False):
        super().__init__()
        self.w, self.noisy = torch.nn.Parameter(torch.ones(1)), noisy

    def forward(self, images, targets):
        value = self.w[0] * torch.stack(images).mean()
        return {"loss_cls": value, "loss_box": value * torch.rand(()) if self.noisy else value * 0}


def loader(values, unreadable=None):
    """Batches of one image each, of these values; `unreadable` names files at a step."""

    def from_step(step):
        for at in range(step, len(values)):
            image = torch.full((3, 2, 2), float(values[at]))
            yield [image], [{"boxes": torch.zeros(0, 4)}], [1000 + at], (unreadable or {}).get(at, [])

    return from_step


def go(model, values, folder, config=PLAIN, **options):
    folder.mkdir(exist_ok=True)
    return train(model, loader(values, **options), config=config, steps=config.steps, run=Run(folder), title="line")


# ---- settings into numbers ----


def test_the_learning_rate_by_hand():
    config = TrainConfig(learning_rate=0.1, batch_size=32, warmup_steps=10, milestones=(2 / 3, 25 / 27))
    rates = [learning_rate(step, config=config, steps=270) for step in (0, 5, 10, 179, 180, 249, 250, 269)]
    # 0.1 is for 16 images, so 0.2; from a thousandth up to it in 10 steps, then a tenth at 180 and again at 250
    assert rates == pytest.approx([0.0002, 0.2 * (0.001 + 0.999 / 2), 0.2, 0.2, 0.02, 0.02, 0.002, 0.002])


def test_a_short_run_warms_up_over_a_tenth_of_its_steps():
    config = TrainConfig(learning_rate=1.0, batch_size=16, warmup_steps=1500, milestones=())
    rates = [learning_rate(step, config=config, steps=40) for step in range(5)]
    assert rates == pytest.approx([0.001, 0.25075, 0.5005, 0.75025, 1.0])
    assert learning_rate(0, config=config, steps=1) == 0.001


def test_epochs_are_rounded_up_to_whole_batches():
    config = TrainConfig(epochs=3, batch_size=16)
    assert number_of_steps(config, 100) == 19  # 300 / 16 = 18.75
    assert number_of_steps(replace(config, steps=7), 100) == 7
    assert number_of_steps(replace(config, epochs=0.01), 10) == 1
    assert number_of_steps(TrainConfig(epochs=36, batch_size=16), 118_287) == 266_146  # 36 * 118287 / 16 = 266145.75


def decays(model) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = engine.build_optimizer(model, TrainConfig(weight_decay=0.05)).param_groups
    return {names[id(parameter)]: group["weight_decay"] for group in groups for parameter in group["params"]}


def test_nothing_but_weights_decays():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1))
    model.scale = torch.nn.Parameter(torch.ones(()))
    model[2].weight.requires_grad_(False)
    assert decays(model) == {"0.weight": 0.05, "0.bias": 0, "1.weight": 0, "1.bias": 0, "2.bias": 0, "scale": 0}


def test_position_tables_of_transformers_do_not_decay():
    swin = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=24, depths=(1, 1, 1, 1), num_classes=0)
    found = decays(swin)
    tables = [name for name in found if "relative_position_bias_table" in name]
    assert len(tables) == 4 and {found[name] for name in tables} == {0}
    assert found["layers.0.blocks.0.attn.qkv.weight"] == 0.05 and found["layers.0.blocks.0.norm1.weight"] == 0
    vit = timm.create_model("vit_tiny_patch16_224", embed_dim=24, depth=1, num_classes=0)
    assert decays(vit)["pos_embed"] == 0 and decays(vit)["blocks.0.mlp.fc1.weight"] == 0.05


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="optimizer='adam' is not allowed; use adamw or sgd"):
        engine.build_optimizer(torch.nn.Linear(1, 1), TrainConfig(optimizer="adam"))


def test_precision_is_chosen_by_the_device_unless_it_is_set():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [engine.precision_of(TrainConfig(), device) for device in (cpu, cuda)] == ["float32", "bf16"]
    assert engine.precision_of(TrainConfig(precision="bf16"), cpu) == "bf16"
    with engine.autocast(TrainConfig(precision="bf16"), cpu):
        assert torch.ones(2, 2).matmul(torch.ones(2, 2)).dtype == torch.bfloat16
    with engine.autocast(TrainConfig(), cpu):
        assert torch.ones(2, 2).matmul(torch.ones(2, 2)).dtype == torch.float32


# ---- training ----


def test_a_step_follows_the_gradient(tmp_path):
    model = Line()
    result = go(model, [1, 2, 3, 4, 5, 6], tmp_path)
    # momentum 0.9: velocities 1, 2.9, 5.61, 9.049, 13.1441, 17.82969, their sum times the rate
    assert model.w.item() == pytest.approx(1 - 0.1 * 49.53279, abs=1e-4)
    assert result["unreadable"] == [] and result["seconds"] > 0
    history = Run(tmp_path).history
    assert [entry["step"] for entry in history] == [2, 4, 6]
    assert history[0]["loss_cls"] == pytest.approx(0.9 * 2) and history[0]["learning_rate"] == 0.1


def test_the_rate_of_a_step_is_the_one_it_should_have(tmp_path):
    model = Line()
    go(model, [1, 1, 1, 1], tmp_path, replace(PLAIN, steps=4, log_every=1, milestones=(0.5,), warmup_steps=1))
    rates = [0.0001, 0.1, 0.01, 0.01]
    assert [entry["learning_rate"] for entry in Run(tmp_path).history] == pytest.approx(rates)
    velocities = [1, 1.9, 2.71, 3.439]
    assert model.w.item() == pytest.approx(1 - sum(r * v for r, v in zip(rates, velocities, strict=True)), abs=1e-6)


def test_gradients_are_clipped(tmp_path):
    model = Line()
    go(model, [100], tmp_path, replace(PLAIN, steps=1, clip_norm=0.5))
    assert model.w.item() == pytest.approx(1 - 0.1 * 0.5, abs=1e-6)


def test_a_loss_that_is_no_number_stops_with_the_images_and_keeps_the_checkpoint(tmp_path):
    model = Line()
    with pytest.raises(NonFiniteLoss, match=r"step 3: losses \{'loss_cls': nan, .* on images \[1003\]"):
        go(model, [1, 2, 3, float("nan"), 5, 6], tmp_path)
    assert torch.isfinite(model.w).all()
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    assert saved["step"] == 2 and torch.isfinite(saved["model"]["w"]).all()
    with pytest.raises(NonFiniteLoss, match="step 0: .*inf"):
        go(Line(), [float("inf")], tmp_path / "other")
    assert not (tmp_path / "other/checkpoint.pt").exists()


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_a_run_goes_on_as_if_nothing_had_happened(tmp_path, stop):
    """Weights, momentum, random stream and log, after a stop between two checkpoints and after one at a checkpoint."""
    config = replace(PLAIN, optimizer="adamw", log_every=1)
    torch.manual_seed(0)
    undisturbed = Line(noisy=True)
    go(undisturbed, [1, 2, 3, 4, 5, 6], tmp_path / "whole", config)
    torch.manual_seed(0)
    with pytest.raises(NonFiniteLoss):
        go(Line(noisy=True), [1, 2, 3, 4, 5, 6][:stop] + [float("nan")], tmp_path / "parts", config)
    torch.manual_seed(99)
    continued = Line(noisy=True)
    go(continued, [1, 2, 3, 4, 5, 6], tmp_path / "parts", config)
    assert torch.equal(continued.w, undisturbed.w)

    def history(name):
        return [{k: v for k, v in entry.items() if k != "seconds"} for entry in Run(tmp_path / name).history]

    assert history("parts") == history("whole") and len(history("parts")) == 6


def test_a_new_run_forgets_the_log_of_one_without_a_checkpoint(tmp_path):
    Run(tmp_path).log({"step": 1})
    go(Line(), [1, 2, 3, 4, 5, 6], tmp_path)
    assert [entry["step"] for entry in Run(tmp_path).history] == [2, 4, 6]


def test_unreadable_images_are_named_once_also_those_before_an_interruption(tmp_path):
    names = {0: ["b.jpg"], 3: ["a.jpg", "b.jpg"], 5: ["c.jpg"]}
    with pytest.raises(NonFiniteLoss):
        go(Line(), [1, 2, float("nan")], tmp_path, unreadable=names)
    assert go(Line(), [1, 2, 3, 4, 5, 6], tmp_path, unreadable=names)["unreadable"] == ["a.jpg", "b.jpg", "c.jpg"]


def test_time_before_an_interruption_counts(tmp_path):
    with pytest.raises(NonFiniteLoss):
        go(Line(), [1, 2, float("nan")], tmp_path)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    torch.save(saved | {"seconds": 1000.0}, tmp_path / "checkpoint.pt")
    assert go(Line(), [1, 2, 3, 4, 5, 6], tmp_path)["seconds"] > 1000


def test_processes_share_their_statistics_and_what_they_could_not_read(monkeypatch):
    """Each process saw other images; weights are equal, BatchNorm's running statistics are not."""
    model, other = torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2)
    model.running_mean[:], other.running_mean[:] = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])
    model.num_batches_tracked += 5
    theirs = iter(copy.deepcopy([buffer for buffer in other.buffers() if buffer.is_floating_point()]))
    monkeypatch.setattr(engine, "rank_and_world", lambda: (0, 2))
    monkeypatch.setattr(engine.dist, "all_reduce", lambda mine: mine.add_(next(theirs)))
    monkeypatch.setattr(engine.dist, "all_gather_object", lambda values, mine: values.__setitem__(1, {"b"}))
    state = {"unreadable": {"a"}}
    engine._share(model, state)
    assert model.running_mean.tolist() == [2, 4] and model.running_var.tolist() == [1, 1]
    assert model.num_batches_tracked == 5 and state["unreadable"] == {"a", "b"}


def test_weights_are_whole_or_absent_and_say_what_they_are(tmp_path):
    model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    about = {"run": "warmup-1", "model": {"channels": 4}}
    engine.save_weights(model, tmp_path / "model.safetensors", metadata=about)
    loaded = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["cassl"]) == about
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


# ---- testing ----


class Finder(torch.nn.Module):
    """Finds what is bright, the brighter the surer, as one box with a mask; the box is twice as wide as the mask."""

    def __init__(self, masks=True):
        super().__init__()
        self.w, self.config = torch.nn.Parameter(torch.ones(1)), SimpleNamespace(masks=masks)

    def predict(self, images, sizes):
        assert not self.training and not torch.is_grad_enabled()
        return [self._one(image, size) for image, size in zip(images, sizes, strict=True)]

    def _one(self, image, size):
        bright = torch.nn.functional.interpolate(image[None].float(), size=size)[0, 0] > 127
        rows, columns = bright.any(1).nonzero()[:, 0], bright.any(0).nonzero()[:, 0]
        if not len(rows):
            none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
            return none | {"masks": torch.zeros((0, *size), dtype=torch.bool)}
        left, right = columns[0].item(), columns[-1].item() + 1
        box = [left, rows[0].item(), 2 * right - left, rows[-1].item() + 1]
        found = {"boxes": torch.tensor([box]).float(), "scores": image.max().float()[None] / 256}
        return found | {"labels": torch.tensor([0]), "masks": bright[None]}


def test_the_test_loop_yields_every_image_once_and_names_what_it_could_not_read():
    bright = torch.full((3, 8, 8), 255, dtype=torch.uint8)
    dark = bright * 0
    batches = [([bright, dark], [None, None], [5, 6], ["x.jpg"]), ([], [], [], ["y.jpg"]), ([bright], [None], [7], [])]
    model = Finder().train()
    found = list(predict(model, batches, sizes={5: (4, 6), 6: (8, 8), 7: (2, 2)}.get, config=PLAIN, title=None))
    assert [(image_id, unreadable) for image_id, _, unreadable in found] == [
        (5, ["x.jpg"]),
        (6, []),
        (None, ["y.jpg"]),
        (7, []),
    ]
    assert found[0][1]["boxes"].tolist() == [[0, 0, 12, 4]] and found[0][1]["masks"].shape == (1, 4, 6)
    assert len(found[1][1]["boxes"]) == 0 and found[2][1] is None


SIZE = 100


@pytest.fixture
def squares(tmp_path):
    """One bright square an image, of 24, 30 and 90 pixels; an empty image, and one with something that is no object.

    Besides an absent image, a crowd, a box without area, and a category that is not listed.
    """
    (tmp_path / "images").mkdir()
    entries, annotations = [], []
    for number, side in enumerate((24, 30, 90, 0, 24)):
        pixels = np.zeros((SIZE, SIZE), np.uint8)
        pixels[:side, :side] = 255 if number == 4 else 200
        Image.fromarray(pixels).save(tmp_path / f"images/{number}.png")
        entries.append({"id": number, "file_name": f"{number}.png", "height": SIZE, "width": SIZE})
        if side and number < 4:
            shape = {"segmentation": [[0, 0, side, 0, side, side, 0, side]], "area": side**2, "iscrowd": 0}
            annotations.append({"image_id": number, "category_id": 7, "bbox": [0, 0, side, side], **shape})
    crowd = mask_api.encode(np.asfortranarray(np.ones((SIZE, SIZE), np.uint8)))
    crowd = {"size": crowd["size"], "counts": crowd["counts"].decode()}
    extra = {"image_id": 3, "category_id": 7, "area": 10_000, "segmentation": crowd, "bbox": [0, 0, 100, 100]}
    annotations += [extra | {"iscrowd": 1}, extra | {"bbox": []}, extra | {"category_id": 70}]
    annotations.append(annotations[0] | {"image_id": 50})
    annotations = [{"id": number} | annotation for number, annotation in enumerate(annotations)]  # the first is 0
    entries.append({"id": 50, "file_name": "absent.png", "height": SIZE, "width": SIZE})
    path = tmp_path / "instances.json"
    data = {"images": entries, "annotations": annotations, "categories": [{"id": 7, "name": "square"}]}
    path.write_text(json.dumps(data))
    return CocoImages(path, tmp_path / "images")


def evaluated(squares, masks=True, classes=False, **more):
    sizes = AugmentConfig(test_size=SIZE, longest=SIZE)
    how = {"augment": sizes, "training": PLAIN, "classes": classes, "folder": squares.folder.parent, **more}
    return evaluate_detector(Finder(masks), squares, **how)


def test_masks_are_judged_by_their_own_areas(squares):
    """The surest mask is a false one, and small (below 32 * 32); its box, twice as wide, is not."""
    found = evaluated(squares)["mask_agnostic"]
    # Precision where 1, 2, 3 objects are found: 1/2, 2/3, 3/4; of the small ones 1/2, 2/3; the larger one is alone
    expected = {"AP": 3 / 4, "APs": 2 / 3, "APm": 1, "APl": -1}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    truth = COCO()
    truth.dataset = json.loads(squares.path.read_text())
    truth.dataset["annotations"] = [a | {"id": a["id"] + 1} for a in truth.dataset["annotations"][:4]]
    truth.createIndex()
    masks = [np.pad(np.ones((side, side), np.uint8), (0, SIZE - side)) for side in (24, 24, 30, 90)]
    results = [{"image_id": n, "category_id": 7, "score": 0.99 if n == 4 else 0.8} for n in (4, 0, 1, 2)]
    detected = truth.loadRes(
        [r | {"segmentation": mask_api.encode(np.asfortranarray(m))} for r, m in zip(results, masks, strict=True)]
    )
    reference = COCOeval(truth, detected, "segm")
    reference.evaluate(), reference.accumulate(), reference.summarize()
    assert list(found.values()) == pytest.approx(reference.stats.tolist())


def test_what_is_evaluated_depends_on_the_detector_and_on_the_annotations(squares):
    assert list(evaluated(squares, classes=True)) == ["box", "box_agnostic", "mask", "mask_agnostic"]
    boxes = evaluated(squares, masks=False)
    assert list(boxes) == ["box_agnostic"]
    assert (boxes["box_agnostic"]["AP50"], boxes["box_agnostic"]["AP75"]) == (
        pytest.approx(0.75),
        0,
    )  # twice as wide: IoU 0.5
    data = json.loads(squares.path.read_text())
    for annotation in data["annotations"]:
        del annotation["segmentation"]
    squares.path.write_text(json.dumps(data))
    assert list(evaluated(CocoImages(squares.path, squares.folder))) == ["box_agnostic"]


def test_processes_share_the_images_to_evaluate(squares, tmp_path, monkeypatch):
    sizes = AugmentConfig(test_size=SIZE, longest=SIZE)
    for rank in (1, 0):
        monkeypatch.setattr(engine, "rank_and_world", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(engine, "of_all_processes", lambda value, world: [value] * world)
        how = {"folder": tmp_path / "found", "augment": sizes, "training": PLAIN, "unreadable": []}
        found = detect(Finder(), squares, **how)
        assert (found is None) == (rank == 1)
    assert [result["image_id"] for result in found] == [0, 1, 2, 4]  # and 3, which is empty
    assert 3 in found.image_ids
    lines = (tmp_path / "found" / "results-00001-of-00002.jsonl").read_text().splitlines()
    assert [json.loads(line)["image_id"] for line in lines] == [1, 3]


def test_images_that_cannot_be_read_count_as_missed_and_are_named(squares, caplog):
    (squares.folder / "2.png").write_text("no image")
    unreadable = []
    assert evaluated(squares, unreadable=unreadable)["mask_agnostic"]["AR100"] == pytest.approx(2 / 3)
    (name,) = unreadable
    assert name.startswith(str(squares.folder / "2.png"))
    assert f"1 of 5 images could not be read and count as missed, such as {name}" in caplog.text
