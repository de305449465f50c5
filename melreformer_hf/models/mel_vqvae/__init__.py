"""Mel spectrograms as a grid of discrete tokens."""
