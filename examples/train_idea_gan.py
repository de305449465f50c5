"""Train the adversarial idea model.

accelerate launch examples/train_idea_gan.py --config tiny --dataset DIR

`melreformer train idea_gan` does the same.
"""

from melreformer_hf.training.main import main

if __name__ == "__main__":
    main("idea_gan")
