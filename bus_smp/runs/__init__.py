"""A run on disk: its files, its experiments, its evaluations. Only this room knows their names."""
