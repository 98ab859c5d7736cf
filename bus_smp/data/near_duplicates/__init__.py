"""Images that show the same frame again: found, verified, and kept in one group."""
