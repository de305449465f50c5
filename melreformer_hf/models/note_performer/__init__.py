"""Performer: notes to log-mels, as the sum of what the keys of an instrument sound like."""
