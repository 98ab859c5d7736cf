"""``bus-smp compare-models``: the hybrid model and other networks, their size, work, time and memory."""
