"""Per-example maths of what is measured, one idea per file."""
