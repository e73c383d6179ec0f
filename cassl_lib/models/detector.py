"""The contract that training, evaluation and labeling rely on: what goes into a detector and what comes out."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from cassl_lib.config import ModelConfig


@runtime_checkable
class Detector(Protocol):
    """A detector by torchvision's convention. Every implementation is also an `nn.Module`.

    `model(images, targets)` returns losses in training mode; `model(images)` returns detections in evaluation mode.

    Images and targets may be on any device; the detector moves them to its own. It changes none of its inputs.
    State-dict names begin with the part they belong to, `backbone.`, `neck.` or `head.` (the classifier is
    `head.class_logits.`), so that parts can be transferred (Table 9).

    **images**: list of B tensors (3, H, W), RGB, uint8 in [0, 255] or floating point in [0, 1]; sizes may differ.

    **targets**: list of B dicts. An image without instances (N = 0) is allowed.
        boxes: (N, 4) float xyxy, pixels of the input image. Zero-area boxes are allowed and match nothing.
        labels: (N,) int64, classes from 0 to `config.num_classes - 1`; all 0 for a class-agnostic detector.
        masks: (N, H, W) bool or uint8 in {0, 1}. Required if `config.masks` and N > 0.
        ignored: optional (H, W) bool or uint8 in {0, 1}, pixels that are not trained as background.

    **losses**: dict of scalar float32 tensors, `loss_cls`, `loss_box`, ...; their sum is minimized (Eq. 6). They are
    finite and reach every parameter with `requires_grad`, whatever the targets.

    **detections**: list of B dicts, at most `config.detections_per_image` rows each, by descending score. N = 0 is
    allowed. The frame is the input image's, or the original image's if `predict` is given `sizes`.
        boxes: (N, 4) float32 xyxy, pixels of the frame, clipped to it, of positive width and height.
        scores: (N,) float32 in [0, 1].
        labels: (N,) int64, as in the targets.
        masks: (N, H, W) bool, H and W of the frame. Only if `config.masks`. With `config.one_entity_per_pixel` they do
            not overlap, and boxes are the tight boxes of the masks.
    """

    config: ModelConfig  # fixed at construction; for other settings build a detector and load the state dict
    training: bool

    @property
    def device(self) -> torch.device:
        """Where the parameters are, and the losses and detections will be."""
        ...

    def __call__(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, detections in evaluation mode.

        Raises:
            ValueError: training mode without targets, or targets without masks if `config.masks`.
        """
        ...

    def predict(self, images: list[Tensor], sizes: list[tuple[int, int]] | None = None) -> list[dict[str, Tensor]]:
        """Detections without gradients.

        Args:
            images: list of (3, H, W), usually resized from their originals.
            sizes: (height, width) of each original image, to which boxes and masks are scaled.
        """
        ...
