"""The network, its losses and its checkpoint file."""
