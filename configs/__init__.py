"""Configs: one file per stage, launched with --config=configs/FILE.py:ARGUMENTS."""
