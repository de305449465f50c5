"""MIDI as numbers: notes of files, the arrival-time and interarrival token schemes, and their vocabularies."""
