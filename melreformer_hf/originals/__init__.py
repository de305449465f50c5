"""Checkpoints of the original programs: reading them safely, their arguments, their names, their weight norms."""
