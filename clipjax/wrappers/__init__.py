"""Wrappers: what goes around a clip or an optimizer."""
