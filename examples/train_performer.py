"""Train a performer: notes to log-mels, learned from MIDI files that a sound font plays.

accelerate launch examples/train_performer.py --config tiny --dataset MIDI_DIR --soundfont FILE.sf2

`melreformer train performer` does the same.
"""

from melreformer_hf.training.main import main

if __name__ == "__main__":
    main("performer")
