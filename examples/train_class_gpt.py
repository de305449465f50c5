"""Train a class GPT on the tokens of labelled sounds.

accelerate launch examples/train_class_gpt.py --config tiny --dataset DIR --options.tokenizer runs/mel_vqvae_tiny/best

`melreformer train class_gpt` does the same.
"""

from melreformer_hf.training.main import main

if __name__ == "__main__":
    main("class_gpt")
