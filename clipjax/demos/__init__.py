"""Runnable demonstrations: what clipping does to real training runs."""
