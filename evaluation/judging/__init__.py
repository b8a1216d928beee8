"""Why two answers differ, by the target's own logits: equal.py --model-path.

This folder and sampling/ load a target; answers/, speedup/ and audit/ read files and need no model
code.
"""
