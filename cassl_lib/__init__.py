"""CA-SSL: class-agnostic semi-supervised learning for detection and segmentation (Qi et al., ECCV 2022)."""

__version__ = "0.1.0"
