"""Token sequences of a class."""
