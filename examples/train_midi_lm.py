"""Train a language model of MIDI tokens: one of transformers' own decoders.

accelerate launch examples/train_midi_lm.py --config tiny --dataset MIDI_DIR

`melreformer train midi_lm` does the same.
"""

from melreformer_hf.training.main import main

if __name__ == "__main__":
    main("midi_lm")
