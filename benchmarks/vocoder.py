"""Vocoder speed and quality beside Griffin-Lim, in one run: `python benchmarks/vocoder.py --help`.

Every method gets the same true mels: of held-out crops of a data set (`--dataset`), of files (`--audio`), or of a
synthetic chord. The table shows seconds, times real time, the ratio to each Griffin-Lim, log-mel L1 and the
multi-resolution STFT distance, as means over the crops. Without `--model` the vocoder has fresh weights: its times
hold, its quality does not, and the table says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from melreformer_hf.audio.griffin_lim import griffin_lim
from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram, undo_log
from melreformer_hf.metrics import log_mel_l1, multi_resolution_stft_distance
from melreformer_hf.models.hifi_vocoder.configuration_hifi_vocoder import HifiVocoderConfig
from melreformer_hf.models.hifi_vocoder.modeling_hifi_vocoder import HifiVocoderModel


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of a saved HifiVocoderModel; default: fresh weights")
    parser.add_argument("--preset", default="istft_tiny", help="size of the fresh model (default: istft_tiny)")
    parser.add_argument("--audio", type=Path, nargs="*", default=[], help="recordings; default: a synthetic chord")
    parser.add_argument("--dataset", help="folder made by `melreformer data build`, or a Hub id; instead of --audio")
    parser.add_argument("--split", default="test", help="held-out split of the data set (default: test)")
    parser.add_argument("--crops", type=int, default=16, help="crops of it, of one recording each (default: 16)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length synthesized per recording (default: 10)")
    parser.add_argument("--offset", type=float, default=5.0, help="where it begins in each file (default: 5)")
    parser.add_argument("--iterations", type=int, default=64, help="Griffin-Lim iterations (default: 64)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--repeats", type=int, default=3, help="timed repeats, the fastest counts (default: 3)")
    arguments = parser.parse_args()
    if arguments.seconds < 0.5 or arguments.repeats < 1 or arguments.threads < 1:
        parser.error("--seconds must be at least 0.5, --repeats and --threads at least 1")
    if arguments.crops < 1 or (arguments.dataset and arguments.audio):
        parser.error("--crops must be at least 1, and --dataset and --audio exclude each other")
    return arguments


def synthetic_chord(num_samples: int, sampling_rate: int) -> torch.Tensor:
    """Decaying harmonic notes, a new chord every half second; (1, num_samples)."""
    times = torch.arange(num_samples, dtype=torch.float64) / sampling_rate
    waveform = torch.zeros_like(times)
    for index, pitch in enumerate((131.0, 165.0, 196.0, 262.0, 330.0, 392.0, 523.0)):
        since = (times + 0.07 * index) % 0.5
        for harmonic in range(1, 9):
            waveform += torch.sin(2 * torch.pi * pitch * harmonic * times) * torch.exp(-5 * since) / harmonic**1.5
    return (0.5 * waveform / waveform.abs().max()).float().unsqueeze(0)


def read_recordings(arguments: argparse.Namespace, mel_config: MelConfig) -> torch.Tensor:
    """(recording, sample), cut to whole frames."""
    samples = int(arguments.seconds * mel_config.sampling_rate) // mel_config.hop_length * mel_config.hop_length
    if arguments.dataset:
        from melreformer_hf.data.opening import open_recordings

        recordings = open_recordings(
            arguments.dataset, arguments.split, sampling_rate=mel_config.sampling_rate, channels=1
        )
        crops = recordings.fixed_crops(samples, arguments.crops)
        return torch.stack([crop["waveform"] for crop in crops])
    if not arguments.audio:
        return synthetic_chord(samples, mel_config.sampling_rate)
    import soundfile
    import soxr

    rows = []
    for path in arguments.audio:
        values, rate = soundfile.read(path, dtype="float32", always_2d=True)
        values = soxr.resample(values.mean(1), rate, mel_config.sampling_rate)
        first = int(arguments.offset * mel_config.sampling_rate)
        if len(values) < first + samples:
            raise SystemExit(
                f"{path} ends before {arguments.offset + arguments.seconds} s; lower --seconds or --offset."
            )
        rows.append(torch.from_numpy(values[first : first + samples]))
    return torch.stack(rows)


def librosa_griffin_lim(log_mel: torch.Tensor, config: MelConfig, iterations: int) -> torch.Tensor:
    """librosa's `mel_to_audio` (non-negative least squares and Griffin-Lim), one recording after another."""
    import librosa

    rows = []
    for mel in undo_log(log_mel, config):
        audio = librosa.feature.inverse.mel_to_audio(
            mel.numpy(),
            sr=config.sampling_rate,
            n_fft=config.n_fft,
            hop_length=config.hop_length,
            win_length=config.win_length,
            power=config.power,
            n_iter=iterations,
            fmin=config.fmin,
            fmax=config.max_frequency,
        )
        rows.append(torch.nn.functional.pad(torch.from_numpy(audio), (0, config.hop_length)))
    samples = log_mel.shape[-1] * config.hop_length
    return torch.stack([row[:samples] for row in rows])


def fastest(run: Callable[[], torch.Tensor], repeats: int) -> tuple[float, torch.Tensor]:
    """Seconds of the fastest of several runs after one that warms up, and the result."""
    result, best = run(), float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        result = run()
        best = min(best, time.perf_counter() - start)
    return best, result


def methods(arguments: argparse.Namespace, model: HifiVocoderModel, mel: torch.Tensor) -> dict[str, Callable]:
    config = model.config.mel_config
    found: dict[str, Callable] = {
        "vocoder, float32": lambda: model(mel).waveform,
        "vocoder, streamed by 128 frames": lambda: torch.cat(list(model.stream(mel.split(128, dim=-1))), dim=-1),
    }

    def autocast() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(mel).waveform

    found["vocoder, bfloat16 autocast"] = autocast
    found[f"Griffin-Lim {arguments.iterations}, this package"] = lambda: griffin_lim(
        mel, config, arguments.iterations, generator=torch.Generator().manual_seed(0)
    )
    if importlib.util.find_spec("librosa") and not config.center and config.log_multiplier == 1.0:
        found[f"Griffin-Lim {arguments.iterations}, librosa mel_to_audio"] = lambda: librosa_griffin_lim(
            mel, config, arguments.iterations
        )
    return found


def processor_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@torch.inference_mode()
def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.model is None:
        model = HifiVocoderModel(HifiVocoderConfig.preset(arguments.preset)).eval()
    else:
        model = HifiVocoderModel.from_pretrained(arguments.model, dtype=torch.float32).eval()
    config = model.config.mel_config
    target = read_recordings(arguments, config)
    mel = log_mel_spectrogram(target, config)
    print(f"{processor_name()}, {arguments.threads} threads, torch {torch.__version__}")
    weights = str(arguments.model) if arguments.model else f"fresh weights ({arguments.preset}): quality means nothing"
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"vocoder: {weights}, {size:.2f} M parameters, receptive field {model.receptive_field_frames} frames")
    audio_seconds = target.numel() / config.sampling_rate
    results = {name: fastest(run, arguments.repeats) for name, run in methods(arguments, model, mel).items()}
    baselines = {name: seconds for name, (seconds, _) in results.items() if name.startswith("Griffin-Lim")}
    heads = ["method", "seconds", "x real time", *(f"x {name}" for name in baselines)]
    heads += ["mel L1", "MR-STFT"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for name, (seconds, waveform) in results.items():
        ratios = [f"{baseline / seconds:.1f}" for baseline in baselines.values()]
        quality = [
            f"{log_mel_l1(waveform, target, config):.4f}",
            f"{multi_resolution_stft_distance(waveform, target):.4f}",
        ]
        print("| " + " | ".join([name, f"{seconds:.3f}", f"{audio_seconds / seconds:.0f}", *ratios, *quality]) + " |")


if __name__ == "__main__":
    main()
