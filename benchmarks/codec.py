"""Quality of a codec at measured bits beside Opus, and its speed beside transformers' EnCodec: `python benchmarks/codec.py`.

Every codec gets the same held-out sounds. Bits are those of whole files, headers and checksums included, for Opus those of
its Ogg files. Opus is `opusenc` or, where that is missing, ffmpeg's libopus; without both its rows are left out, and the
table says so. EnCodec is transformers' `EncodecModel` with random weights and about as many parameters: only its times mean
something.
"""

from __future__ import annotations

import argparse
import io
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import EncodecConfig, EncodecModel

from melreformer_hf.audio.io import resample
from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.data.opening import open_recordings
from melreformer_hf.metrics import log_mel_l1, multi_resolution_stft_distance, si_sdr
from melreformer_hf.pipelines.codecs import load_codec, load_entropy
from melreformer_hf.pipelines.coding import decode_stream, encode_stream
from melreformer_hf.processing.codec_files import CodecFileReader

_OPUS_RATE = 48000
_QUIETEST = 1e-3  # rms: softer sounds have no signal-to-distortion ratio worth a mean


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codec", default="codec-tiny", help="bundled name, folder or Hub id (default: codec-tiny)")
    parser.add_argument("--dataset", help="folder made by `melreformer data build`, or a Hub id; default: speed alone")
    parser.add_argument("--split", default="test", help="held-out split of the data set (default: test)")
    parser.add_argument("--crops", type=int, default=40, help="sounds, of one recording each first (default: 40)")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each (default: 8)")
    parser.add_argument(
        "--kbps", type=float, nargs="*", default=[1.5, 3.0, 6.0], help="of the codec (default: 1.5 3 6)"
    )
    parser.add_argument("--opus", type=float, nargs="*", default=[6.0, 8.0, 12.0], help="of Opus (default: 6 8 12)")
    parser.add_argument("--entropy", action="store_true", help="also shorten the codes by the codec's language model")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2], help="of the speed table (default: 1 2)")
    parser.add_argument("--speed-seconds", type=float, default=10.0, help="sound that is timed (default: 10)")
    parser.add_argument("--repeats", type=int, default=5, help="timed repeats, the fastest counts (default: 5)")
    arguments = parser.parse_args()
    if min(arguments.crops, arguments.repeats, *arguments.threads) < 1 or arguments.seconds < 0.5:
        parser.error("--crops, --repeats and --threads must be at least 1, --seconds at least 0.5")
    return arguments


def through_codec(codec, waveform: np.ndarray, kbps: float, entropy) -> tuple[torch.Tensor, int]:
    """What comes back, (channel, sample), and the bytes of the file."""
    file = io.BytesIO()
    encode_stream(codec, [waveform], codec.config.sampling_rate, file, kbps, entropy=entropy)
    reader = CodecFileReader(io.BytesIO(file.getvalue()))
    made = torch.cat(list(decode_stream(codec, reader, entropy=entropy)), dim=-1)
    return made[0], len(file.getvalue())


def opus_commands() -> Callable[[Path, Path, float], list[str]] | None:
    """How a WAV file becomes an Opus file, or `None` where no program is at hand."""
    if shutil.which("opusenc"):
        return lambda wav, opus, kbps: ["opusenc", "--quiet", "--bitrate", f"{kbps:g}", str(wav), str(opus)]
    if shutil.which("ffmpeg"):
        words = ["ffmpeg", "-v", "error", "-y", "-i"]
        return lambda wav, opus, kbps: [*words, str(wav), "-c:a", "libopus", "-b:a", f"{1000 * kbps:g}", str(opus)]
    return None


def through_opus(waveform: np.ndarray, rate: int, kbps: float, command: Callable) -> tuple[torch.Tensor, int]:
    """What comes back at the rate of what went in, (channel, sample), and the bytes of the file."""
    with tempfile.TemporaryDirectory() as folder:
        wav, opus = Path(folder) / "sound.wav", Path(folder) / "sound.opus"
        soundfile.write(wav, resample(waveform, rate, _OPUS_RATE).T, _OPUS_RATE, subtype="PCM_16")
        subprocess.run(command(wav, opus, kbps), check=True)
        made, read = soundfile.read(opus, dtype="float32", always_2d=True)
        back = resample(np.ascontiguousarray(made.T), read, rate).reshape(-1, round(len(made) * rate / read))
        missing = max(0, waveform.shape[-1] - back.shape[-1])
        return torch.from_numpy(np.pad(back, [(0, 0), (0, missing)])[:, : waveform.shape[-1]]), opus.stat().st_size


def quality(name: str, sounds: list[np.ndarray], rate: int, code: Callable) -> str:
    """One row: means over the sounds."""
    mel, found, size, seconds = MelConfig(sampling_rate=rate), [], 0, 0.0
    for sound in sounds:
        made, count = code(sound)
        true = torch.from_numpy(sound).reshape(made.shape[0], -1)
        size, seconds = size + count, seconds + sound.shape[-1] / rate
        ratio = si_sdr(made, true).mean().item() if true.square().mean().sqrt() > _QUIETEST else float("nan")
        found.append((log_mel_l1(made, true, mel).item(), multi_resolution_stft_distance(made, true).item(), ratio))
    distances = np.nanmean(np.array(found), axis=0)
    return (
        f"| {name} | {8 * size / 1000 / seconds:.2f} | {distances[0]:.3f} | {distances[1]:.3f} | {distances[2]:.1f} |"
    )


def quality_table(arguments: argparse.Namespace, codec) -> None:
    config = codec.config
    recordings = open_recordings(
        arguments.dataset, arguments.split, sampling_rate=config.sampling_rate, channels=config.audio_channels
    )
    samples = round(arguments.seconds * config.sampling_rate)
    sounds = [item["waveform"].numpy() for item in recordings.fixed_crops(samples, arguments.crops)]
    rate, opus = config.sampling_rate, opus_commands()
    print(f"{len(sounds)} sounds of {arguments.seconds:g} s, split {arguments.split}\n")
    print("| codec | kbit/s as measured | log-mel L1 | MR-STFT | SI-SDR (dB) |\n|---|---|---|---|---|")
    models = [("", None), (", language model", load_entropy(arguments.codec))] if arguments.entropy else [("", None)]
    for kbps in arguments.kbps:
        for told, entropy in models:
            row = quality(
                f"{arguments.codec} {kbps:g}{told}",
                sounds,
                rate,
                lambda sound, kbps=kbps, entropy=entropy: through_codec(codec, sound, kbps, entropy),
            )
            print(row, flush=True)
    for kbps in arguments.opus if opus else ():
        print(
            quality(f"Opus {kbps:g}", sounds, rate, lambda sound, kbps=kbps: through_opus(sound, rate, kbps, opus)),
            flush=True,
        )
    print(
        f"\n{'Opus by ' + opus(Path(), Path(), 0)[0] if opus else 'No opusenc and no ffmpeg here: no rows of Opus'}\n"
    )


def peer(parameters: int, config) -> EncodecModel:
    """transformers' EnCodec of about as many parameters, with random weights."""
    widths = {}
    for filters in range(8, 49, 4):
        with torch.device("meta"):
            made = EncodecModel(EncodecConfig(num_filters=filters, audio_channels=config.audio_channels))
        widths[filters] = sum(parameter.numel() for parameter in made.parameters())
    best = min(widths, key=lambda filters: abs(widths[filters] - parameters))
    return EncodecModel(EncodecConfig(num_filters=best, audio_channels=config.audio_channels)).eval()


def fastest(call: Callable, repeats: int) -> float:
    """Seconds of the fastest of some calls, after one that does not count."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


@torch.no_grad()
def speed_table(arguments: argparse.Namespace, codec) -> None:
    count = sum(parameter.numel() for parameter in codec.parameters())
    other = peer(count, codec.config)
    theirs = sum(parameter.numel() for parameter in other.parameters())
    print(
        f"{arguments.speed_seconds:g} s of sound; ours {count / 1e6:.2f} M parameters, EnCodec {theirs / 1e6:.2f} M\n"
    )
    print("| threads | codec | encode, times real time | decode, times real time |\n|---|---|---|---|")
    kbps = codec.config.bandwidth()
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        rows = []
        for name, model, rate in (("ours", codec, codec.config.sampling_rate), ("EnCodec", other, 24000)):
            sound = 0.1 * torch.randn(1, codec.config.audio_channels, round(arguments.speed_seconds * rate))
            bandwidth = {} if name == "ours" else {"bandwidth": 6.0}
            codes = model.encode(sound, **bandwidth).audio_codes
            extra = () if name == "ours" else ([None],)
            times = (
                fastest(lambda m=model, s=sound, b=bandwidth: m.encode(s, **b), arguments.repeats),
                fastest(lambda m=model, c=codes, e=extra: m.decode(c, *e), arguments.repeats),
            )
            rows.append([arguments.speed_seconds / seconds for seconds in times])
            told = f"ours, {kbps:g} kbit/s" if name == "ours" else "transformers' EnCodec, 6 kbit/s"
            print(f"| {threads} | {told} | {rows[-1][0]:.1f} | {rows[-1][1]:.1f} |", flush=True)
        ratios = [one / two for one, two in zip(*rows, strict=True)]
        print(f"| {threads} | ratio | {ratios[0]:.2f} | {ratios[1]:.2f} |", flush=True)


def main() -> None:
    arguments = read_arguments()
    codec = load_codec(arguments.codec)
    print(f"{platform.machine()}, torch {torch.__version__}, codec {arguments.codec}\n")
    if arguments.dataset:
        torch.set_num_threads(max(arguments.threads))
        quality_table(arguments, codec)
    speed_table(arguments, codec)


if __name__ == "__main__":
    main()
