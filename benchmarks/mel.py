"""Speed of the log-mel transform, beside librosa and transformers.

    python benchmarks/mel.py --seconds 30 --threads 1 2

Times are the best of many runs. Within a round every program runs twice and its second run counts: a busy machine slows
all of them, and none is measured while the threads of the one before it still spin. How waiting threads wait is left to
the environment (`OMP_WAIT_POLICY`) and printed: on two threads it decides more than anything else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import numpy
import torch

from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the waveform")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to measure")
    parser.add_argument("--rounds", type=int, default=20, help="runs of each program; the best counts")
    parser.add_argument("--preset", default="hifigan", help="mel contract")
    return parser.parse_args()


def programs(waveform: torch.Tensor, config: MelConfig) -> dict[str, Callable[[], numpy.ndarray]]:
    """The same log-mel, (mel, frame), by three programs; the peers are given the padded waveform."""
    import librosa
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    padded = torch.nn.functional.pad(waveform[None, None], config.padding, mode="reflect")[0, 0].numpy()
    bank = mel_filter_bank(
        num_frequency_bins=config.n_fft // 2 + 1,
        num_mel_filters=config.num_mel_bins,
        min_frequency=config.fmin,
        max_frequency=config.max_frequency,
        sampling_rate=config.sampling_rate,
        norm="slaney",
        mel_scale="slaney",
    ).astype(numpy.float32)
    window = window_function(config.win_length, "hann")

    def ours() -> numpy.ndarray:
        with torch.no_grad():
            return log_mel_spectrogram(waveform, config).numpy()

    def with_librosa() -> numpy.ndarray:
        mel = librosa.feature.melspectrogram(
            y=padded,
            sr=config.sampling_rate,
            n_fft=config.n_fft,
            hop_length=config.hop_length,
            center=False,
            power=config.power,
            n_mels=config.num_mel_bins,
            fmin=config.fmin,
            fmax=config.max_frequency,
        )
        return numpy.log(numpy.maximum(mel, config.log_floor))

    def with_transformers() -> numpy.ndarray:
        return spectrogram(
            padded,
            window,
            config.n_fft,
            config.hop_length,
            power=config.power,
            center=False,
            mel_filters=bank,
            mel_floor=config.log_floor,
            log_mel="log",
        )

    return {
        "this package": ours,
        "librosa melspectrogram": with_librosa,
        "transformers spectrogram": with_transformers,
    }


def measure(seconds: float, rounds: int, preset: str) -> dict:
    """Best times of each program in this process, as a ratio to librosa's too."""
    config = MelConfig.preset(preset)
    if config.log_base != "e" or config.center:
        raise SystemExit(f"--preset must have a natural logarithm and center=False, got {preset!r}.")
    generator = torch.Generator().manual_seed(0)
    waveform = torch.randn(int(seconds * config.sampling_rate), generator=generator) * 0.1
    found = programs(waveform, config)
    best, made = dict.fromkeys(found, float("inf")), {}
    for _ in range(rounds + 1):  # the first round fills caches and counts as little as any slow one
        for name, run in found.items():
            run()
            started = time.perf_counter()
            made[name] = run()
            best[name] = min(best[name], time.perf_counter() - started)
    ours = made["this package"]
    return {
        name: {
            "milliseconds": round(1000 * best[name], 2),
            "times librosa's speed": round(best["librosa melspectrogram"] / best[name], 2),
            "largest difference": round(float(numpy.abs(made[name] - ours).max()), 6),
        }
        for name in found
    }


def main() -> None:
    arguments = read_arguments()
    inside = os.environ.get("MEL_BENCHMARK_THREADS")
    if inside:
        torch.set_num_threads(int(inside))
        print(json.dumps(measure(arguments.seconds, arguments.rounds, arguments.preset)))
        return
    result = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set")}
    for threads in arguments.threads:
        # A process each: numpy and its Fourier transforms read the number of threads once, when they start.
        names = ("MEL_BENCHMARK_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, str(threads))}
        command = [sys.executable, __file__, *sys.argv[1:]]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        result[f"{threads} threads"] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
