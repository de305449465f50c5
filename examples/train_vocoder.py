"""Train a vocoder.

accelerate launch examples/train_vocoder.py --config examples/configs/vocoder_tiny.yaml --dataset DIR
"""

from melreformer_hf.training.main import main
from melreformer_hf.training.recipes.vocoder import VocoderRecipe

if __name__ == "__main__":
    main(VocoderRecipe)
