"""What was run with fsq_jax: the quickstart, the paper's tables and figures, their reports."""
