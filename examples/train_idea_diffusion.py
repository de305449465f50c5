"""Train the idea model.

accelerate launch examples/train_idea_diffusion.py --config examples/configs/idea_diffusion_tiny.yaml --dataset DIR
"""

from melreformer_hf.training.main import main
from melreformer_hf.training.recipes.idea_diffusion import IdeaDiffusionRecipe

if __name__ == "__main__":
    main(IdeaDiffusionRecipe)
