"""Networks: arrays to arrays, Flax Linen modules that take values and never a config."""
