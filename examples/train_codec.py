"""Train a codec.

accelerate launch examples/train_codec.py --config tiny --dataset DIR

`melreformer train codec` does the same.
"""

from melreformer_hf.training.main import main

if __name__ == "__main__":
    main("codec")
