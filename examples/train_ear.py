"""Train an ear: recordings to notes.

accelerate launch examples/train_ear.py --config tiny --dataset MIDI_DIR --soundfont PIANO.sf2

`melreformer train ear` does the same.
"""

from melreformer_hf.training.main import main

if __name__ == "__main__":
    main("ear")
