"""The parts of `method_pages.py`, which makes a page for each recipe."""
