"""Train the baseline of the expansion.

accelerate launch examples/train_conv_upsampler.py --config examples/configs/conv_upsampler_tiny.yaml --dataset DIR
"""

from melreformer_hf.training.main import main
from melreformer_hf.training.recipes.conv_upsampler import ConvUpsamplerRecipe

if __name__ == "__main__":
    main(ConvUpsamplerRecipe)
