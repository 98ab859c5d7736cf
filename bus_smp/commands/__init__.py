"""One module per command of ``bus-smp``; each imports what it needs inside its function."""
