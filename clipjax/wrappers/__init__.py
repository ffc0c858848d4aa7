"""Transformations that wrap a clip or a whole optimizer."""
