"""Stands in for torchvision, which MONAI Label imports for a transform that no app of ours uses; it would be 2 GB more."""
