"""Vocal separation by bands of the complex spectrum: causal with a short look-ahead, or offline."""
