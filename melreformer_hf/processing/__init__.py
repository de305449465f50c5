"""Without weights, savable beside a model: `MelFeatureExtractor`, `MidiTokenizer`, and MIDI as numbers in `midi`."""
