"""Measurements of trees, for analysis rather than for training."""
