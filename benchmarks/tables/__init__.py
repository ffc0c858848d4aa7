"""Benchmarks that are run by `make bench`: one file for each table and its claim."""
