"""A run put together from its config, or from any path to weights."""
