"""Speed: run with `make benchmark`; never part of the tests."""
