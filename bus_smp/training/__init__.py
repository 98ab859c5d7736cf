"""Training: the loop, and the journal that lets it be killed at any moment."""
