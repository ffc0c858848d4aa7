"""The tasks of the demonstrations: real text, real digits and synthetic data."""
