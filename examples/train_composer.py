"""Train a composer: a language model of notes.

accelerate launch examples/train_composer.py --config tiny --dataset MIDI_DIR

`melreformer train composer` does the same.
"""

from melreformer_hf.training.main import main

if __name__ == "__main__":
    main("composer")
