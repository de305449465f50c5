"""Part of `melreformer_hf`."""
