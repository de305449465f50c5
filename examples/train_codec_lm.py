"""Train the language model of a codec's codes.

accelerate launch examples/train_codec_lm.py --config tiny --dataset DIR --options.codec runs/codec_tiny/best

`melreformer train codec_lm` does the same.
"""

from melreformer_hf.training.main import main

if __name__ == "__main__":
    main("codec_lm")
