"""Per-example maths of what is measured, one idea a file."""
