"""From raw folders to manifests, and from manifests to batches."""
