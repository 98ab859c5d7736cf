"""From images to masks: networks as predictors, in PyTorch or from an exported file."""
