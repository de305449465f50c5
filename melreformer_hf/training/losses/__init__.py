"""Losses that need no network of their own, or a second network."""
