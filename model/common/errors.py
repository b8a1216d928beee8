"""The one exception for bad input: a line that names the file, flag or tensor, exit code 2."""


class BadInput(Exception):
    """What the user gave cannot be used; the message is one line and names it."""
