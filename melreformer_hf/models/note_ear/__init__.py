"""Transcription: configuration, a convolutional network from log-mels to onsets, frames, offsets and velocities, decoding."""
