"""Train the expansion.

accelerate launch examples/train_expansion.py --config tiny --dataset DIR

`melreformer train expansion` does the same.
"""

from melreformer_hf.training.main import main

if __name__ == "__main__":
    main("expansion")
