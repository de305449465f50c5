"""MelGAN: a small vocoder of plain convolutions."""
