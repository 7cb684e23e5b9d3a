"""Frozen networks whose features are compared."""
