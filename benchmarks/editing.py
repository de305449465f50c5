"""What is added to held-out recordings: whether its notes are the piece's, how loud it is, and the seam at its border.

    python benchmarks/editing.py --dataset data/piano --count 6 --strengths 0.5 0.8 0.9 1 --threads 1

The checkpoint's ear writes down the recording and what was added; compared are seconds per pitch class, by cosine.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from melreformer_hf import MelReformerPipeline, MidiGenerationPipeline, log_mel_spectrogram
from melreformer_hf.data.opening import open_recordings

LONGEST_TICKS = 300  # of a note, so that one held under the pedal does not outweigh all others
NEAR_FRAMES, SEAM_FRAMES = 172, 3


def pitch_classes(ear: MidiGenerationPipeline, audio: torch.Tensor) -> np.ndarray:
    """Ticks that the ear hears of each of the 12, of length 1; zeros where it hears nothing."""
    heard = np.zeros(12)
    for note in ear.transcribe(audio, ear.sampling_rate).notes:
        heard[note.pitch % 12] += min(note.duration or 50, LONGEST_TICKS)
    return heard / max(np.linalg.norm(heard), 1e-9)


def seam(mel: torch.Tensor, border: int) -> float:
    """How much a (mel, frame) log-mel changes at a border, in the mean of the changes within two seconds of it."""
    changes = mel.diff(dim=1).abs().mean(0)
    here = changes[border - SEAM_FRAMES : border + SEAM_FRAMES]
    before = changes[max(border - NEAR_FRAMES, 0) : border - SEAM_FRAMES]
    near = torch.cat([before, changes[border + SEAM_FRAMES : border + NEAR_FRAMES]])
    return (here.mean() / near.mean()).item()


def level(audio: torch.Tensor) -> float:
    """Mean power in dB."""
    return 10 * audio.square().mean().clamp(min=1e-12).log10().item()


def measure(
    pipe: MelReformerPipeline,
    ear: MidiGenerationPipeline,
    recordings: Sequence[torch.Tensor],
    strength: float,
    seconds: float,
) -> dict[str, float]:
    """Means over recordings (sample,), of which each is extended with its number as seed."""
    classes, rows = [pitch_classes(ear, audio) for audio in recordings], []
    for index, audio in enumerate(recordings):
        seed = torch.Generator().manual_seed(index)
        longer = pipe.extend((audio, pipe.sampling_rate), 0.0, seconds, strength, generator=seed).audios[0, 0]
        border = len(audio) // pipe.mel_config.hop_length
        added = longer[border * pipe.mel_config.hop_length :]
        heard = pitch_classes(ear, added)
        others = [other @ heard for number, other in enumerate(classes) if number != index]
        change = seam(log_mel_spectrogram(longer, pipe.mel_config), border)
        rows.append((classes[index] @ heard, np.mean(others or [np.nan]), level(added) - level(audio), change))
    return dict(zip(("own", "others", "level", "seam"), np.mean(rows, axis=0).tolist(), strict=True))


def main() -> None:
    """Measure and print a table."""
    words = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    words.add_argument("--checkpoint", default="piano-tiny")
    words.add_argument("--dataset", required=True)
    words.add_argument("--split", default="validation")
    words.add_argument("--count", type=int, default=6, help="recordings")
    words.add_argument("--seconds", type=float, default=20.0, help="of each recording")
    words.add_argument("--add", type=float, default=8.0, help="seconds that are added")
    words.add_argument("--strengths", type=float, nargs="+", default=[0.5, 0.8, 0.9, 1.0])
    words.add_argument("--seed", type=int, default=0, help="of the crops")
    words.add_argument("--threads", type=int, default=1)
    asked = words.parse_args()
    torch.set_num_threads(asked.threads)
    pipe, ear = (kind.from_pretrained(asked.checkpoint) for kind in (MelReformerPipeline, MidiGenerationPipeline))
    pipe.set_progress_bar_config(disable=True)
    hop = pipe.mel_config.hop_length
    samples = round(asked.seconds * pipe.sampling_rate)
    stream = open_recordings(asked.dataset, asked.split).crops(samples, samples + hop, seed=asked.seed, multiple=hop)
    recordings = [stream.item(index)["waveform"] for index in range(asked.count)]
    print("| strength | own piece | other pieces | level, dB | seam |\n|---|---|---|---|---|")
    for strength in asked.strengths:
        found = measure(pipe, ear, recordings, strength, asked.add)
        numbers = f"{found['own']:.2f} | {found['others']:.2f} | {found['level']:+.1f} | {found['seam']:.2f}"
        print(f"| {strength:g} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
