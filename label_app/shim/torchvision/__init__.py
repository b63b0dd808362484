"""Stands in for torchvision, which MONAI Label imports for a transform that this app does not use."""
