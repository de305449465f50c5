"""Train a separator of vocals and instrumental.

accelerate launch examples/train_separation.py --config tiny --dataset VOICES --options.accompaniment BAND

`melreformer train separation` does the same.
"""

from melreformer_hf.training.main import main

if __name__ == "__main__":
    main("separation")
