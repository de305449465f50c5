"""Train a mel VQ-VAE, the tokenizer of sounds.

accelerate launch examples/train_mel_vqvae.py --config tiny --dataset DIR

`melreformer train mel_vqvae` does the same.
"""

from melreformer_hf.training.main import main

if __name__ == "__main__":
    main("mel_vqvae")
