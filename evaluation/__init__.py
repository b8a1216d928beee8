"""Tools that read answer files: speed.py (speedups, acceptance), equal.py (the same output?)."""
