"""Runs on disk: the names of their files, one run, one experiment, one evaluation. No torch."""
