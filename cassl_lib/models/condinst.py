"""CondInst, the base detector (Sec. 3.3): backbone, pyramid, head; without masks it is FCOS."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cassl_lib.config import ModelConfig
from cassl_lib.models import losses
from cassl_lib.models.backbone import STAGE_STRIDES, Backbone
from cassl_lib.models.condinst_masks import (
    box_centers,
    dynamic_parameters,
    enlarge_masks,
    mask_boxes,
    mask_centers,
    mask_logits,
    pixel_matrix,
    sample_masks,
)
from cassl_lib.models.fcos import (
    Head,
    Locations,
    Predictions,
    Targets,
    assign_targets,
    fcos_losses,
    make_locations,
    select_detections,
)
from cassl_lib.models.fpn import FPN

SIZE_DIVISOR = 32  # the coarsest backbone stage
MOVING_START, MOVING_SHARE = 100.0, 0.9  # of the moving average of positives, where that divides the class loss
CELLS_AT_ONCE = 2**19  # mask cells of stride 8 worked on at one time in inference: 16 MB per hidden layer


class CondInst(nn.Module):
    """The detector, by torchvision's convention.

    `model(images, targets)` in training returns the losses, `model(images)` in evaluation the detections.

    images: list of (3, H, W) RGB, uint8 or float in [0, 1]; sizes may differ.
    targets: list of dicts: boxes (N, 4) xyxy in pixels; labels (N,) int64 from 0; masks (N, H, W) bool or uint8,
        needed when `config.masks`, and for center sampling by mask; perhaps ignored (H, W), pixels that are not to be
        learned as background. N = 0 is ordinary.
    losses: dict of float32 scalars loss_cls, loss_box, loss_centerness and, with masks, loss_mask.
    detections: list of dicts: boxes (N, 4), scores (N,) descending, labels (N,) and, with masks, masks (N, H, W) bool.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config, first_stage=STAGE_STRIDES.index(config.strides[0]))
        self.neck = FPN(self.backbone.channels, config.channels, config.strides)
        self.head = Head(config)
        # Not in the state dict: they belong to the config, and an empty slot in weights from elsewhere.
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.pixel_std).view(3, 1, 1), persistent=False)
        if config.class_normalizer == "moving":
            self.register_buffer("moving_positives", torch.tensor(MOVING_START))

    def forward(self, images: list[Tensor], targets: list[dict] | None = None) -> dict | list[dict]:
        if not self.training:
            return self.predict(images)
        if targets is None:
            raise ValueError("training needs targets; call model.eval() or model.predict() for detections")
        batch = self.make_batch(images)
        pyramid = self.neck(self.backbone(batch))
        predictions = self.head(pyramid)
        locations = self.make_locations(pyramid)
        features = self.head.mask_branch(pyramid) if self.config.masks else None
        with torch.autocast(batch.device.type, enabled=False):
            truth = self.gather_targets(targets, locations)
            matched = assign_targets(locations, truth.boxes, truth.centers, self.config.center_radius)
            result = fcos_losses(
                predictions, locations=locations, matched=matched, targets=truth, class_count=self.class_count
            )
        if self.config.masks:
            result["loss_mask"] = self.mask_loss(
                features, predictions=predictions, locations=locations, matched=matched, targets=targets
            )
        return result

    @torch.no_grad()
    def predict(self, images: list[Tensor], sizes: list[tuple[int, int]] | None = None) -> list[dict[str, Tensor]]:
        """Detections; boxes and masks in the frame of each image as given or, if `sizes` is given, scaled to it.

        Args:
            images: list of (3, H, W).
            sizes: (height, width) of the original images.
        """
        batch = self.make_batch(images)
        pyramid = self.neck(self.backbone(batch))
        predictions, locations = self.head(pyramid), self.make_locations(pyramid)
        features = self.head.mask_branch(pyramid).float() if self.config.masks else None
        results = []
        for i, found in enumerate(select_detections(predictions, locations, self.config)):
            image_size = tuple(images[i].shape[-2:])
            size = image_size if sizes is None else tuple(sizes[i])
            scale = found["boxes"].new_tensor([size[1] / image_size[1], size[0] / image_size[0]]).repeat(2)
            found["boxes"] = clip_boxes(found["boxes"] * scale, size)
            nonempty = (found["boxes"][:, 2:] > found["boxes"][:, :2]).all(1)
            found = {name: value[nonempty] for name, value in found.items()}
            positions = found.pop("positions")
            if self.config.masks:
                parameters = dynamic_parameters(
                    self.head.controller,
                    [x[i : i + 1] for x in predictions.box_maps],
                    torch.zeros_like(positions),
                    positions,
                )
                found["masks"], certainty = self.paste_masks(
                    features[i],
                    parameters,
                    points=locations.points[positions],
                    sizes=locations.sizes[positions],
                    image_size=image_size,
                    size=size,
                )
                found = self.finish_masks(found, certainty)
            results.append(found)
        return results

    def make_batch(self, images: list[Tensor]) -> Tensor:
        """Normalize, then pad right and bottom with zeros to one size, a multiple of 32: (B, 3, H, W) float32."""
        height = -(-max(image.shape[-2] for image in images) // SIZE_DIVISOR) * SIZE_DIVISOR
        width = -(-max(image.shape[-1] for image in images) // SIZE_DIVISOR) * SIZE_DIVISOR
        if all(image.shape[-2:] == (height, width) and image.dtype == images[0].dtype for image in images):
            batch = self.normalize(torch.stack(list(images)))
        else:
            padded = [F.pad(self.normalize(x), (0, width - x.shape[-1], 0, height - x.shape[-2])) for x in images]
            batch = torch.stack(padded)
        # The order in which convolutions are faster on every device, and which they keep.
        return batch.contiguous(memory_format=torch.channels_last)

    def normalize(self, image: Tensor) -> Tensor:
        image = image.to(self.pixel_mean.device, non_blocking=True)
        image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
        return (image - self.pixel_mean) / self.pixel_std

    def make_locations(self, pyramid: list[Tensor]) -> Locations:
        return make_locations([x.shape[-2:] for x in pyramid], self.config, pyramid[0].device)

    def gather_targets(self, targets: list[dict], locations: Locations | None = None) -> Targets:
        """Pad the boxes, labels and centers of a batch to one length, at least 1; look up what is ignored."""
        device = self.pixel_mean.device
        boxes = [target["boxes"].to(device, torch.float32) for target in targets]
        labels = [target["labels"].to(device) for target in targets]
        centers = []
        for target, box in zip(targets, boxes, strict=True):
            by_mask = self.config.center == "mask" and target.get("masks") is not None
            centers.append(mask_centers(target["masks"].to(device), box) if by_mask else box_centers(box))
        ignored = None
        if any("ignored" in target for target in targets):
            ignored = torch.stack([ignored_at(target.get("ignored"), locations) for target in targets])
        return Targets(*(pad_rows(values) for values in (boxes, labels, centers)), ignored)

    def class_count(self, positives: Tensor, matched: Tensor) -> Tensor:
        """What the class loss is divided by (`config.class_normalizer`)."""
        if self.config.class_normalizer == "locations":
            return losses.mean_over_processes(positives.new_tensor(float(matched.numel())))
        if self.config.class_normalizer == "moving":
            self.moving_positives.lerp_(positives, 1 - MOVING_SHARE)
            return self.moving_positives.clone()
        return positives

    def mask_loss(
        self, features: Tensor, *, predictions: Predictions, locations: Locations, matched: Tensor, targets: list[dict]
    ) -> Tensor:
        """Dice loss of every positive location's mask, at most `config.mask_proposals` of them drawn at random."""
        images, positions = (matched >= 0).nonzero(as_tuple=True)
        if len(images) > self.config.mask_proposals:
            drawn = torch.randperm(len(images), device=images.device)[: self.config.mask_proposals].sort().values
            images, positions = images[drawn], positions[drawn]
        # DEVIATES: divided by the mean count over processes; public code averages per process, so that the weight of
        # an instance depends on its neighbors on the same device. Equal with one process.
        count = losses.mean_over_processes(features.new_tensor(float(len(images)), dtype=torch.float32)).clamp(min=1)
        parameters = dynamic_parameters(self.head.controller, predictions.box_maps, images, positions)
        stride = self.config.strides[0]
        with torch.autocast(features.device.type, enabled=False):
            logits = mask_logits(
                features.float(),
                parameters=parameters,
                images=images,
                points=locations.points[positions],
                sizes=locations.sizes[positions],
                stride=stride,
            )
            truth = gather_masks(targets, stride=stride // 2, size=tuple(logits.shape[-2:]), device=logits.device)
            first = torch.tensor([0, *(len(t["boxes"]) for t in targets)], device=images.device).cumsum(0)
            truth = truth[first[images] + matched[images, positions]]
            return losses.dice_loss(logits.sigmoid(), truth.float()).sum() / count

    def paste_masks(
        self,
        features: Tensor,
        parameters: Tensor,
        *,
        points: Tensor,
        sizes: Tensor,
        image_size: tuple[int, int],
        size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Masks (N, *size) bool of one image: enlarge to pixels, crop the padding, resize to `size`, > 0.5.

        Also the mean probability (N,) inside each mask, where `config.rescore_masks` asks for it. With
        `config.one_entity_per_pixel` a pixel belongs to the first mask that has it.
        """
        stride = self.config.strides[0]
        # Features beyond the image (and the cell that its last pixels are interpolated toward) would be cropped.
        rows, columns = (-(-side // stride) + 1 for side in image_size)
        features = features[None, :, :rows, :columns]
        cells = features.shape[-2] * features.shape[-1]
        masks = features.new_zeros((len(parameters), *size), dtype=torch.bool)
        certainty = features.new_zeros(len(parameters))
        taken = masks.new_zeros(size) if self.config.one_entity_per_pixel else None
        at_once = max(1, CELLS_AT_ONCE // cells)
        with torch.autocast(features.device.type, enabled=False):
            to_pixels = [
                pixel_matrix(2 * cells, stride // 2, image_side=image_side, side=side, device=features.device)
                for cells, image_side, side in zip(features.shape[-2:], image_size, size, strict=True)
            ]
            for start in range(0, len(parameters), at_once):
                chunk = slice(start, start + at_once)
                logits = mask_logits(
                    features,
                    parameters=parameters[chunk],
                    images=torch.zeros_like(sizes[chunk], dtype=torch.int64),
                    points=points[chunk],
                    sizes=sizes[chunk],
                    stride=stride,
                )
                mean = certainty[chunk] if self.config.rescore_masks else None
                enlarge_masks(logits.sigmoid(), *to_pixels, masks[chunk], certainty=mean, taken=taken)
        return masks, certainty

    def finish_masks(self, found: dict[str, Tensor], certainty: Tensor) -> dict[str, Tensor]:
        """What entity inference does after the masks are there (public Entity code): boxes of the pixels, scores."""
        if self.config.one_entity_per_pixel:
            found["boxes"] = mask_boxes(found["masks"])
            # Nothing left, or only a line of one pixel.
            kept = ((found["boxes"][:, 2:] - found["boxes"][:, :2]) > 1).all(1)
            found, certainty = {name: value[kept] for name, value in found.items()}, certainty[kept]
        if self.config.rescore_masks:
            found["scores"] = found["scores"] * certainty
            order = found["scores"].argsort(descending=True, stable=True)
            found = {name: value[order] for name, value in found.items()}
        return found


def pad_rows(values: list[Tensor]) -> Tensor:
    """[(N_i, ...)] -> (B, max(1, max N_i), ...), filled up with zeros."""
    spare = values[0].new_zeros((1, *values[0].shape[1:]))
    return nn.utils.rnn.pad_sequence([*values, spare], batch_first=True)[:-1]


def ignored_at(ignored: Tensor | None, locations: Locations) -> Tensor:
    """(P,) bool: which locations lie on an ignored pixel of an image, (H, W)."""
    x, y = locations.points.long().unbind(1)
    if ignored is None:
        return torch.zeros_like(x, dtype=torch.bool)
    height, width = ignored.shape[-2:]
    inside = (x < width) & (y < height)
    return inside & ignored.to(x.device).bool().view(height, width)[y.clamp(max=height - 1), x.clamp(max=width - 1)]


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    x, y = boxes[:, 0::2].clamp(0, size[1]), boxes[:, 1::2].clamp(0, size[0])
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)


def gather_masks(targets: list[dict], *, stride: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """Mask targets of all instances of a batch, image by image: (sum of N, *size)."""
    sampled = [torch.zeros((0, *size), dtype=torch.bool, device=device)]
    for target in targets:
        if len(target["boxes"]) == 0:
            continue
        if target.get("masks") is None:
            raise ValueError("ModelConfig(masks=True) needs targets with masks; use masks=False for boxes alone")
        sampled.append(sample_masks(target["masks"].to(device), stride=stride, size=size))
    return torch.cat(sampled)
