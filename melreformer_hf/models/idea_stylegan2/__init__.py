"""Ideas by a style-based adversarial generator that also says how long the music is."""
