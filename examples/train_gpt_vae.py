"""Train a GPT-VAE on the tokens of sounds.

accelerate launch examples/train_gpt_vae.py --config tiny --dataset DIR --options.tokenizer runs/mel_vqvae_tiny/best

`melreformer train gpt_vae` does the same.
"""

from melreformer_hf.training.main import main

if __name__ == "__main__":
    main("gpt_vae")
