"""Pure functions on tensors, with units in every docstring.

- `mel`: `MelConfig`, the contract that travels with every checkpoint, and the only log-mel.
- `stft`: short-time Fourier transforms, forth and back; `griffin_lim`: a waveform of a log-mel without a network.
- `resize`, `fold`: ideas and decoder windows. `io`: audio files.
"""
