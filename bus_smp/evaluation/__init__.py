"""What a model is worth: prediction at native size, metrics, intervals, baselines."""
