"""Measurements, layer by layer: `python -m benchmarks --help`. Read README.md in this folder before believing any."""
