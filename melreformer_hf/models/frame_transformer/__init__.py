"""Vocal separation by a mask on magnitudes."""
