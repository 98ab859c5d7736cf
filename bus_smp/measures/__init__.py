"""Two masks, or probabilities and a mask, to numbers about one image."""
