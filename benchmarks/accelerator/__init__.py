"""Checks and timings on a GPU or TPU, in one command; see ``__main__``."""
