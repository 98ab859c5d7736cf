"""From images to masks: predictors that run a network in PyTorch or from an exported file, and the files they write."""
