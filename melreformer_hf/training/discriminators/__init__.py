"""Discriminators: plain modules that return (logits, feature maps), one entry per sub-discriminator."""
