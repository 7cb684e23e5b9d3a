"""Runs as processes of their own: what is left of a plan, dealt out over the GPUs at hand."""
