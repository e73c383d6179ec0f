"""CondInst, the paper's base detector (Sec. 3.3): FCOS plus a mask head that is generated for each instance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cassl_lib.config import ModelConfig
from cassl_lib.models import losses
from cassl_lib.models.condinst_masks import (
    MaskBranch,
    count_dynamic_parameters,
    dynamic_parameters,
    enlarge_masks,
    gather_masks,
    mask_boxes,
    mask_logits,
    pixel_matrix,
)
from cassl_lib.models.fcos import FCOS
from cassl_lib.models.fcos_head import Head, Predictions
from cassl_lib.models.fcos_targets import Locations

# Mask cells at the features' stride per chunk in inference: 16 MB per hidden layer, 8 MB of logits at half the stride.
CELLS_AT_ONCE = 2**19


@dataclass
class MaskPredictions(Predictions):
    """FCOS's predictions and the mask features, which the generated mask heads are applied to."""

    mask_features: Tensor  # (B, features, H, W) at the stride of the finest level


class CondInstHead(Head):
    """FCOS's head, a controller that generates each instance's mask head, and the mask branch."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.mask_branch = MaskBranch(config)

    def make_layers(self, config: ModelConfig) -> None:
        super().make_layers(config)
        self.controller = nn.Conv2d(config.channels, count_dynamic_parameters(config.mask_features), 3, padding=1)

    def forward(self, pyramid: list[Tensor]) -> MaskPredictions:
        """All predictions but the controller's, which `dynamic_parameters` computes at chosen locations only."""
        predictions = super().forward(pyramid)
        return MaskPredictions(
            class_logits=predictions.class_logits,
            distances=predictions.distances,
            centerness=predictions.centerness,
            box_maps=predictions.box_maps,
            mask_features=self.mask_branch(pyramid),
        )


class CondInst(FCOS):
    """CondInst (Tian et al., ECCV 2020): boxes of FCOS, and a mask for each.

    Implements `detector.Detector` with masks. Losses: those of FCOS and loss_mask. With `config.one_entity_per_pixel`
    masks do not overlap, and each box is the tight box of its mask (entity segmentation).
    """

    head_class = CondInstHead

    def extra_losses(
        self, predictions: MaskPredictions, *, locations: Locations, matched: Tensor, targets: list[dict]
    ) -> dict[str, Tensor]:
        loss = self.mask_loss(predictions, locations=locations, matched=matched, targets=targets)
        return {"loss_mask": loss}

    def mask_loss(
        self, predictions: MaskPredictions, *, locations: Locations, matched: Tensor, targets: list[dict]
    ) -> Tensor:
        """Mean dice loss of the masks of at most `config.mask_proposals` positive locations, drawn at random.

        Args:
            matched: (B, P) index of each location's box in its target, -1 for background.
        """
        # Choose positive locations.
        images, positions = (matched >= 0).nonzero(as_tuple=True)
        if len(images) > self.config.mask_proposals:
            drawn = torch.randperm(len(images), device=images.device)[: self.config.mask_proposals].sort().values
            images, positions = images[drawn], positions[drawn]
        # DEVIATES: divided by the mean count over processes; public code averages per process, so that the weight of
        # an instance depends on the other instances on its device. With one process the two are equal.
        features = predictions.mask_features
        count = losses.mean_over_processes(features.new_tensor(float(len(images)), dtype=torch.float32)).clamp(min=1)
        # Generate their mask heads.
        parameters = dynamic_parameters(self.head.controller, predictions.box_maps, images=images, positions=positions)
        stride, mask_stride = self.config.strides[0], self.config.mask_stride
        with torch.autocast(features.device.type, enabled=False):
            # Predict masks on the grid of the loss.
            logits = mask_logits(
                features.float(),
                parameters=parameters,
                images=images,
                points=locations.points[positions],
                sizes=locations.sizes[positions],
                stride=stride,
                factor=stride // mask_stride,
            )
            # Compare with the masks of the matched instances, which are numbered through the batch.
            masks = gather_masks(targets, stride=mask_stride, size=tuple(logits.shape[-2:]), device=logits.device)
            first = torch.tensor([0, *(len(t["boxes"]) for t in targets)], device=images.device).cumsum(0)
            masks = masks[first[images] + matched[images, positions]]
            return losses.dice_loss(logits.sigmoid(), masks.float()).sum() / count

    def finish_detections(
        self,
        detections: dict[str, Tensor],
        *,
        positions: Tensor,
        image: int,
        predictions: MaskPredictions,
        locations: Locations,
        image_size: tuple[int, int],
        size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Add masks (N, *size) bool; see `FCOS.finish_detections`."""
        # Generate the mask heads of the detections.
        parameters = dynamic_parameters(
            self.head.controller,
            [x[image : image + 1] for x in predictions.box_maps],
            images=torch.zeros_like(positions),
            positions=positions,
        )
        # Predict the masks in the output frame.
        detections["masks"], certainty = self.paste_masks(
            predictions.mask_features[image].float(),
            parameters,
            points=locations.points[positions],
            sizes=locations.sizes[positions],
            image_size=image_size,
            size=size,
        )
        # Entity inference: boxes and scores from the masks.
        return self.refine_from_masks(detections, certainty)

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
        """Masks of one image's detections: enlarge to pixels, crop the padding, resize to `size`, threshold at 0.5.

        With `config.one_entity_per_pixel` each pixel goes to the first mask that contains it.

        Args:
            features: (features, H, W) float32 mask features of the padded image.
            parameters: (N, 169) float32, see `dynamic_parameters`.
            points: (N, 2) x, y of the detections' locations, pixels.
            sizes: (N,) size of interest of their levels, pixels.
            image_size: (height, width) of the input image.
            size: (height, width) of the output frame.
        Returns:
            Masks (N, *size) bool, and the mean probability (N,) inside each (zeros unless `config.rescore_masks`).
        """
        stride, mask_stride = self.config.strides[0], self.config.mask_stride
        factor = stride // mask_stride
        # Crop the features to the image, plus the one cell that its last pixels are interpolated toward.
        rows, columns = (-(-side // stride) + 1 for side in image_size)
        features = features[None, :, :rows, :columns]
        cells = features.shape[-2] * features.shape[-1]
        masks = features.new_zeros((len(parameters), *size), dtype=torch.bool)
        certainty = features.new_zeros(len(parameters))
        taken = masks.new_zeros(size) if self.config.one_entity_per_pixel else None
        at_once = max(1, CELLS_AT_ONCE // cells)
        with torch.autocast(features.device.type, enabled=False):
            # One resampling matrix per axis: enlarge, crop and resize at once.
            to_pixels = [
                pixel_matrix(factor * cells, mask_stride, image_side=image_side, side=side, device=features.device)
                for cells, image_side, side in zip(features.shape[-2:], image_size, size, strict=True)
            ]
            # Predict and paste in chunks of bounded memory.
            for start in range(0, len(parameters), at_once):
                chunk = slice(start, start + at_once)
                logits = mask_logits(
                    features,
                    parameters=parameters[chunk],
                    images=torch.zeros_like(sizes[chunk], dtype=torch.int64),
                    points=points[chunk],
                    sizes=sizes[chunk],
                    stride=stride,
                    factor=factor,
                )
                mean = certainty[chunk] if self.config.rescore_masks else None
                enlarge_masks(logits.sigmoid(), *to_pixels, masks[chunk], certainty=mean, taken=taken)
        return masks, certainty

    def refine_from_masks(self, detections: dict[str, Tensor], certainty: Tensor) -> dict[str, Tensor]:
        """Entity inference after the masks (public Entity code): tight boxes, scores times mask probability."""
        if self.config.one_entity_per_pixel:
            # Tight boxes; drop masks that are empty or one pixel wide or high.
            detections["boxes"] = mask_boxes(detections["masks"])
            kept = ((detections["boxes"][:, 2:] - detections["boxes"][:, :2]) > 1).all(1)
            detections, certainty = {name: value[kept] for name, value in detections.items()}, certainty[kept]
        if self.config.rescore_masks:
            # Rescore and sort again.
            detections["scores"] = detections["scores"] * certainty
            order = detections["scores"].argsort(descending=True, stable=True)
            detections = {name: value[order] for name, value in detections.items()}
        return detections
