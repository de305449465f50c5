"""Mel spectrograms as a grid of discrete tokens, and back.

`configuration_mel_vqvae`: sizes and mel contract. `modeling_mel_vqvae`: `MelVqvaeModel`. `vqgan_mel_vqvae`: its
convolutional encoder and decoder. `weights_mel_vqvae`: original checkpoints. Its quantizer is `nn.quantization`'s, its
discriminator `training.discriminators.patch`.
"""
