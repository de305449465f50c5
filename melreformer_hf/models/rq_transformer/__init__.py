"""Residual codes, position by position and depth by depth."""
