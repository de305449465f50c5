"""Separators beside simple methods and ideal masks, on held-out mixtures: `python benchmarks/separation.py --help`.

    python benchmarks/separation.py --checkpoint separation-tiny --voices data/voices --band data/band

Voices and instrumental recordings of one split are mixed at one level. Vocals and instrumental of every method are scored:
SI-SDR, SDR (MDX's uSDR) and the median SDR of seconds, means over mixtures in dB. The mixture itself, and ideal masks that
know the stems, stand beside them: what doing nothing is worth, and what a mask can reach. HPSS and REPET-SIM need librosa.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from melreformer_hf.audio.stft import Transform, istft, stft
from melreformer_hf.data.mixtures import fixed_mixtures
from melreformer_hf.data.opening import open_recordings
from melreformer_hf.metrics import chunk_median_sdr, sdr, si_sdr
from melreformer_hf.pipelines.pipeline_separation import SeparationPipeline

# A method makes the vocals (sample,) of (voice, band), (2, sample); only the ideal ones look at more than the sum.
Method = Callable[[torch.Tensor], torch.Tensor]
_TRANSFORM = Transform(2048, 512, 2048)
_LONG, _SHORT = (
    8192,
    512,
)  # windows of the two passes of HPSS, at 22 kHz: voices are percussive in one, harmonic in the other


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", nargs="+", default=["separation-tiny"], help="pipelines or separators")
    parser.add_argument("--voices", required=True, help="dataset of voices")
    parser.add_argument("--band", required=True, help="dataset of instrumental recordings")
    parser.add_argument("--split", default="validation", help="of both (default: validation)")
    parser.add_argument("--count", type=int, default=40, help="mixtures (default: 40)")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each (default: 8)")
    parser.add_argument("--level", type=float, default=-22.0, help="RMS of both sources in dB (default: -22)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    return parser.parse_args()


def masked(sources: torch.Tensor, mask_of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Vocals by a mask on the mixture's spectrum, of the sources' spectra (2, frame, bin)."""
    padded = torch.nn.functional.pad(sources, (0, -sources.shape[-1] % _TRANSFORM.hop_length))
    spectra = stft(padded, _TRANSFORM)
    return istft((mask_of(spectra) * spectra.sum(0))[None], _TRANSFORM)[0, : sources.shape[-1]]


def ideal_ratio(sources: torch.Tensor) -> torch.Tensor:
    """The vocals' share of the magnitudes, with the mixture's phase."""
    return masked(sources, lambda spectra: spectra[0].abs() / spectra.abs().sum(0).clamp(min=1e-9))


def ideal_bounded(sources: torch.Tensor) -> torch.Tensor:
    """The best complex mask within the unit circle, which is what the band-split separator draws."""

    def mask(spectra: torch.Tensor) -> torch.Tensor:
        whole = spectra.sum(0)
        ratio = spectra[0] * whole.conj() / whole.abs().square().clamp(min=1e-12)
        return ratio / ratio.abs().clamp(min=1)

    return masked(sources, mask)


def hpss(sources: torch.Tensor) -> torch.Tensor:
    """Two passes of harmonic-percussive separation: what is percussive at long windows and harmonic at short ones.

    Source: Tachibana, Ono, Sagayama, Singing voice enhancement in monaural music signals based on two-stage
    harmonic/percussive sound separation (2014).
    """
    import librosa

    mixture = sources.sum(0).numpy()
    _, moving = librosa.effects.hpss(mixture, n_fft=_LONG, hop_length=_LONG // 4)
    voice, _ = librosa.effects.hpss(moving, n_fft=_SHORT, hop_length=_SHORT // 4)
    return torch.from_numpy(voice)


def repet_sim(sources: torch.Tensor, rate: int) -> torch.Tensor:
    """What does not repeat: frames against the median of their likes, at least two seconds away.

    Source: Rafii, Pardo, Music/voice separation using the similarity matrix (2012), as in librosa's gallery.
    """
    import librosa

    mixture = sources.sum(0).numpy()
    spectrum = librosa.stft(mixture, n_fft=_TRANSFORM.n_fft, hop_length=_TRANSFORM.hop_length)
    magnitude = np.abs(spectrum)
    width = int(librosa.time_to_frames(2, sr=rate, hop_length=_TRANSFORM.hop_length))
    likes = librosa.decompose.nn_filter(magnitude, aggregate=np.median, metric="cosine", width=width)
    repeating = np.minimum(magnitude, likes)
    mask = librosa.util.softmask(magnitude - repeating, 10 * repeating, power=2)
    voice = librosa.istft(mask * spectrum, hop_length=_TRANSFORM.hop_length, length=len(mixture))
    return torch.from_numpy(voice.astype(np.float32))


def scores(vocals: torch.Tensor, sources: torch.Tensor, rate: int) -> dict[str, float]:
    """Of the vocals and of what they leave of the mixture; who leaves nothing takes the mixture for both."""
    rest = sources.sum(0) - vocals
    made = {"vocals": (vocals, sources[0]), "instrumental": (rest if rest.any() else vocals, sources[1])}
    found = {}
    for name, (stem, true) in made.items():
        found[f"{name} SI-SDR"] = si_sdr(stem, true).item()
        found[f"{name} SDR"] = sdr(stem, true).item()
        found[f"{name} median SDR"] = chunk_median_sdr(stem, true, rate).item()
    return found


def measure(method: Method, mixtures: list[torch.Tensor], rate: int) -> dict[str, float]:
    """Mean scores over mixtures, and times real time of the processor."""
    rows, started = [], time.process_time()
    stems = [method(sources) for sources in mixtures]
    spent = time.process_time() - started
    rows = [scores(vocals, sources, rate) for vocals, sources in zip(stems, mixtures, strict=True)]
    result = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    length = sum(sources.shape[-1] for sources in mixtures) / rate
    return {**result, "times real time (processor)": length / max(spent, 1e-9)}


def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    pipes = {name: SeparationPipeline.from_pretrained(name) for name in arguments.checkpoint}
    rate = next(iter(pipes.values())).sampling_rate
    datasets = (arguments.voices, arguments.band)
    voices, band = (open_recordings(name, arguments.split, sampling_rate=rate, channels=1) for name in datasets)
    made = fixed_mixtures(voices, band, round(arguments.seconds * rate), arguments.count, arguments.level)
    mixtures = [sources[:, 0] for sources in made]  # (2, sample)
    methods: dict[str, Method] = {
        "mixture": lambda sources: sources.sum(0),
        "HPSS": hpss,
        "REPET-SIM": lambda sources: repet_sim(sources, rate),
        **{name: lambda sources, pipe=pipe: pipe(sources.sum(0), rate).vocals[0] for name, pipe in pipes.items()},
        "ideal ratio mask": ideal_ratio,
        "ideal mask within the unit circle": ideal_bounded,
    }
    results = {name: measure(method, mixtures, rate) for name, method in methods.items()}
    columns = list(next(iter(results.values())))
    print(f"{len(mixtures)} mixtures of {arguments.seconds:g} s, split {arguments.split}\n")
    print("| method | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for name, row in results.items():
        print(f"| {name} | " + " | ".join(f"{row[column]:.2f}" for column in columns) + " |")
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
