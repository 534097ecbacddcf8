"""Augmentations: how each is drawn, and its operation on the host."""
