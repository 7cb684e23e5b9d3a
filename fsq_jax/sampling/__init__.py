"""Ways to draw tokens from a model that is given as a function."""
