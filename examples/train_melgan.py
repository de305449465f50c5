"""Train a MelGAN vocoder.

accelerate launch examples/train_melgan.py --config tiny --dataset DIR

`melreformer train melgan` does the same.
"""

from melreformer_hf.training.main import main

if __name__ == "__main__":
    main("melgan")
