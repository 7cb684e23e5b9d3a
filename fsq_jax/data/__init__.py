"""Records to batches, in NumPy only: scenes, sources, transforms, pipeline."""
