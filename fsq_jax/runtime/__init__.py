"""The machinery of a run, which knows no model: mesh, checkpoints, files, signals, messages."""
