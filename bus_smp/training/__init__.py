"""A run being made: the loop, its step, the checks before it, cross-validation. It can be killed at any moment."""
