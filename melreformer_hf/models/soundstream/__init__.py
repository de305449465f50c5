"""A neural audio codec: waveforms as a few streams of codes, and back."""
