"""The machine: device, processes, files, locks, signals, threads."""
