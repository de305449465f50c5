"""The idea model: diffusion over small mels, told how long the music shall be."""
