"""Train the idea model.

accelerate launch examples/train_idea_diffusion.py --config tiny --dataset DIR

`melreformer train idea_diffusion` does the same.
"""

from melreformer_hf.training.main import main

if __name__ == "__main__":
    main("idea_diffusion")
