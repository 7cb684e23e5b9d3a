"""A page on which trained weights are tried in a browser: `python -m fsq_jax.demo`."""
