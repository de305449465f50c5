"""Train a vocoder.

accelerate launch examples/train_vocoder.py --config tiny --dataset DIR

`melreformer train vocoder` does the same.
"""

from melreformer_hf.training.main import main

if __name__ == "__main__":
    main("vocoder")
