"""Transformations that go around a clip, or around a whole optimizer."""
