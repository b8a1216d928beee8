"""Conformance: what every method has to keep, and planted defects that show each check can fail."""
