"""Runs on disk; no torch. ``layout`` names all files; ``run``, ``experiment``, ``evaluations`` and ``comparisons`` read and write them.

``bus-smp compare A B`` writes ``outputs/compare-A-B/``: ``comparison.json`` (read by ``comparisons.read_comparison``),
``table.csv`` and ``table.tex``.
"""
