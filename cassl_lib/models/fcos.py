"""FCOS, a detector of boxes: network, training step and the selection of detections. `CondInst` adds masks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from cassl_lib.config import ModelConfig
from cassl_lib.models import losses
from cassl_lib.models.backbone import SIZE_DIVISOR, STAGE_STRIDES, Backbone
from cassl_lib.models.fcos_head import Head, Predictions
from cassl_lib.models.fcos_losses import fcos_losses
from cassl_lib.models.fcos_targets import (
    Locations,
    Targets,
    assign_targets,
    box_centers,
    ignored_locations,
    make_locations,
    mask_centers,
    pad_rows,
)
from cassl_lib.models.fpn import FPN

MOVING_START, MOVING_MOMENTUM = 100.0, 0.9  # moving average of the positives (config.class_normalizer)


class FCOS(nn.Module):
    """FCOS (Tian et al., ICCV 2019): backbone, feature pyramid and a head shared by its levels.

    Implements `detector.Detector` for boxes. Losses: loss_cls, loss_box, loss_centerness.
    """

    head_class = Head

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config, first_stage=STAGE_STRIDES.index(config.strides[0]))
        self.neck = FPN(self.backbone.channels, config.channels, config.strides)
        self.head = self.head_class(config)
        # Not in the state dict: they are settings, and weights of other libraries do not have them.
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.pixel_std).view(3, 1, 1), persistent=False)
        if config.class_normalizer == "moving":
            self.register_buffer("moving_positives", torch.tensor(MOVING_START))

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, images: list[Tensor], targets: list[dict] | None = None) -> dict | list[dict]:
        """Losses in training mode, detections in evaluation mode; see `detector.Detector`."""
        if not self.training:
            return self.predict(images)
        if targets is None:
            raise ValueError("targets=None in training mode. Pass targets, or call model.eval() to get detections.")
        # Predict at every location of the pyramid.
        pyramid = self.neck(self.backbone(self.make_batch(images)))
        predictions, locations = self.head(pyramid), self.make_locations(pyramid)
        with torch.autocast(self.device.type, enabled=False):
            # Assign locations to ground-truth boxes.
            ground_truth = self.gather_targets(targets, locations)
            matched = assign_targets(
                locations, ground_truth.boxes, ground_truth.centers, radius=self.config.center_radius
            )
            # Detection losses (Eq. 6).
            result = fcos_losses(
                predictions, locations=locations, matched=matched, targets=ground_truth, class_count=self.class_count
            )
        # Further losses of subclasses.
        return result | self.extra_losses(predictions, locations=locations, matched=matched, targets=targets)

    @torch.no_grad()
    def predict(self, images: list[Tensor], sizes: list[tuple[int, int]] | None = None) -> list[dict[str, Tensor]]:
        """Detections in the frame of each image or, given `sizes` (height, width), of its original image."""
        # Predict at every location of the pyramid.
        pyramid = self.neck(self.backbone(self.make_batch(images)))
        predictions, locations = self.head(pyramid), self.make_locations(pyramid)
        # Threshold, top candidates and NMS.
        selected = select_detections(predictions, locations, self.config)
        results = []
        for i, detections in enumerate(selected):
            # Scale boxes to the output frame, clip them, and drop those outside.
            image_size = tuple(images[i].shape[-2:])
            size = image_size if sizes is None else tuple(sizes[i])
            scale = detections["boxes"].new_tensor([size[1] / image_size[1], size[0] / image_size[0]]).repeat(2)
            detections["boxes"] = clip_boxes(detections["boxes"] * scale, size)
            nonempty = (detections["boxes"][:, 2:] > detections["boxes"][:, :2]).all(1)
            detections = {name: value[nonempty] for name, value in detections.items()}
            # Masks, if a subclass has them.
            positions = detections.pop("positions")
            detections = self.finish_detections(
                detections,
                positions=positions,
                image=i,
                predictions=predictions,
                locations=locations,
                image_size=image_size,
                size=size,
            )
            results.append(detections)
        return results

    def extra_losses(
        self, predictions: Predictions, *, locations: Locations, matched: Tensor, targets: list[dict]
    ) -> dict[str, Tensor]:
        """Losses that a subclass adds to those of `fcos_losses`."""
        return {}

    def finish_detections(
        self,
        detections: dict[str, Tensor],
        *,
        positions: Tensor,
        image: int,
        predictions: Predictions,
        locations: Locations,
        image_size: tuple[int, int],
        size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """What a subclass adds to the detections of one image.

        Args:
            detections: boxes (N, 4) in the output frame, scores (N,), labels (N,).
            positions: (N,) index of each detection's location.
            image: index of the image in the batch.
            predictions, locations: of the batch.
            image_size: (height, width) of the input image.
            size: (height, width) of the output frame.
        """
        return detections

    def make_batch(self, images: list[Tensor]) -> Tensor:
        """Normalize, then zero-pad right and bottom to one size, a multiple of 32: (B, 3, H, W) float32."""
        height = -(-max(image.shape[-2] for image in images) // SIZE_DIVISOR) * SIZE_DIVISOR
        width = -(-max(image.shape[-1] for image in images) // SIZE_DIVISOR) * SIZE_DIVISOR
        if all(image.shape[-2:] == (height, width) and image.dtype == images[0].dtype for image in images):
            batch = self.normalize(torch.stack(list(images)))
        else:
            padded = [F.pad(self.normalize(x), (0, width - x.shape[-1], 0, height - x.shape[-2])) for x in images]
            batch = torch.stack(padded)
        # Convolutions are faster in this memory format on every device, and preserve it.
        return batch.contiguous(memory_format=torch.channels_last)

    def normalize(self, image: Tensor) -> Tensor:
        """uint8 in [0, 255] or float in [0, 1] -> float32 on the detector's device, minus mean, over std."""
        image = image.to(self.device, non_blocking=True)
        image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
        return (image - self.pixel_mean) / self.pixel_std

    def make_locations(self, pyramid: list[Tensor]) -> Locations:
        return make_locations([x.shape[-2:] for x in pyramid], self.config, pyramid[0].device)

    def gather_targets(self, targets: list[dict], locations: Locations | None = None) -> Targets:
        """Pad the ground truth of a batch to one length; `locations` are needed if any target has `ignored`."""
        boxes = [target["boxes"].to(self.device, torch.float32) for target in targets]
        labels = [target["labels"].to(self.device) for target in targets]
        centers = []
        for target, box in zip(targets, boxes, strict=True):
            by_mask = self.config.center == "mask" and target.get("masks") is not None
            centers.append(mask_centers(target["masks"].to(self.device), box) if by_mask else box_centers(box))
        ignored = None
        if any("ignored" in target for target in targets):
            ignored = torch.stack([ignored_locations(target.get("ignored"), locations) for target in targets])
        return Targets(*(pad_rows(values) for values in (boxes, labels, centers)), ignored)

    def class_count(self, positives: Tensor, matched: Tensor) -> Tensor:
        """The divisor of the class loss (`config.class_normalizer`)."""
        if self.config.class_normalizer == "locations":
            return losses.mean_over_processes(positives.new_tensor(float(matched.numel())))
        if self.config.class_normalizer == "moving":
            self.moving_positives.lerp_(positives, 1 - MOVING_MOMENTUM)
            return self.moving_positives.clone()
        return positives


def select_detections(predictions: Predictions, locations: Locations, config: ModelConfig) -> list[dict[str, Tensor]]:
    """Threshold, top candidates per level, class-wise NMS over all levels, top detections of the image.

    Returns:
        Per image a dict of boxes (N, 4) xyxy in pixels, not clipped; scores (N,) = sqrt(cls * ctr), descending;
        labels (N,); positions (N,) indices into `locations`.
    """
    # Threshold: rejected candidates get a score of -1.
    classes = predictions.class_logits.sigmoid()
    joint = classes * predictions.centerness.sigmoid()[..., None]
    tested = joint if config.threshold_on == "cls*ctr" else classes
    candidates = torch.where(tested > config.score_threshold, joint, -1.0)
    # Top candidates of each level, as (score, location, class).
    scores, positions, labels, start = [], [], [], 0
    for level in candidates.split(locations.counts, 1):
        best, flat = level.flatten(1).topk(min(config.candidates_per_level, level[0].numel()))
        scores.append(best)
        positions.append(flat // level.shape[-1] + start)
        labels.append(flat % level.shape[-1])
        start += level.shape[1]
    per_image = zip(torch.cat(scores, 1), torch.cat(positions, 1), torch.cat(labels, 1), strict=True)

    detections = []
    for (score, position, label), distances in zip(per_image, predictions.distances, strict=True):
        # Decode boxes from the distances.
        passed = score >= 0
        score, position, label = score[passed].sqrt(), position[passed], label[passed]
        points, reach = locations.points[position], distances[position] * locations.strides[position, None]
        boxes = torch.cat([points - reach[:, :2], points + reach[:, 2:]], 1)
        # NMS, which also sorts by score.
        kept = batched_nms(boxes, score, label, config.nms_threshold)[: config.detections_per_image]
        detections.append(
            {"boxes": boxes[kept], "scores": score[kept], "labels": label[kept], "positions": position[kept]}
        )
    return detections


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Clip boxes (N, 4) xyxy to an image of (height, width)."""
    x, y = boxes[:, 0::2].clamp(0, size[1]), boxes[:, 1::2].clamp(0, size[0])
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)
