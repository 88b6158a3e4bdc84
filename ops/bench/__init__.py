"""Benchmarks: scripts that measure the figures that the documentation quotes."""
