"""From the per-image table to numbers about a data set, with intervals. Tables only: no model, no images."""
