"""Configs: one file a stage, launched with --config=configs/FILE.py:ARGUMENTS."""
