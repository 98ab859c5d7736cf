"""Evaluation of runs: scoring at native size, calibration, external tests, pooling, the matrix."""
