"""Train the expansion.

accelerate launch examples/train_expansion.py --config examples/configs/expansion_tiny.yaml --dataset DIR
"""

from melreformer_hf.training.main import main
from melreformer_hf.training.recipes.expansion import ExpansionRecipe

if __name__ == "__main__":
    main(ExpansionRecipe)
