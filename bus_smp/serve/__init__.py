"""The page that a radiologist reads on: ``bus-smp serve``."""
