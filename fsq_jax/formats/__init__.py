"""File formats of weights, read without running anything."""
