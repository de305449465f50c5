"""Train the baseline of the expansion.

accelerate launch examples/train_conv_upsampler.py --config tiny --dataset DIR

`melreformer train conv_upsampler` does the same.
"""

from melreformer_hf.training.main import main

if __name__ == "__main__":
    main("conv_upsampler")
