"""Augmentations: drawing their parameters, and applying them on the host."""
