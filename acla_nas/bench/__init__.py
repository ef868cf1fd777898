"""Benchmarks: the paper's tables beside our own numbers, and comparisons of trained variants."""
