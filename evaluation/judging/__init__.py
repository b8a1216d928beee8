"""Why two answers differ: what loads the target to judge answer files.

The tools beside this folder read files and need no model code; these modules are imported by
equal.py --model-path alone.
"""
