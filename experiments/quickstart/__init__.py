"""The paper's two families in minutes on two CPU cores: `python -m experiments.quickstart`."""
