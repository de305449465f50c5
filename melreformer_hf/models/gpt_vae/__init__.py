"""Token sequences of a latent vector."""
