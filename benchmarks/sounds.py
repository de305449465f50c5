"""Sounds that are drawn from tokens beside real ones: `python benchmarks/sounds.py --help`.

    python benchmarks/sounds.py --dataset data/sounds --checkpoint sounds-tiny --split validation --count 12

The dataset is one of `melreformer data build` with labels, those of the checkpoint. Measured are:

- **tokens**: log-mel L1 of held-out sounds that went through tokens, beside that of their classes' means over training
  sounds; the share of the codewords that they use, and their perplexity.
- **classes**: how often a linear classifier of log-mel statistics, trained on real training sounds, names the class of real
  held-out sounds, of the same through the vocoder and through tokens, and of drawn ones; how different drawn sounds of a
  class are from one another, over how different training sounds are; how far they are from the nearest training sound, over
  how far held-out ones are (medians).
- **gaps**: what the tokens of a gap in the middle of held-out sounds cost knowing both sides and left to right; how far the
  repaired frames are from the true ones (log-mel L1), beside a straight line between the gap's borders and the stretch of a
  training sound of the class that fits the borders best.
- **time**: drawing with and without keys and values kept, and a whole sound.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy

from melreformer_hf import TokenGenerationPipeline, TokenSampling
from melreformer_hf.audio.mel import log_mel_spectrogram
from melreformer_hf.data.opening import open_recordings
from melreformer_hf.metrics import LogMelStatistics, codebook_perplexity, codebook_usage, nearest_neighbor_distance
from melreformer_hf.nn.token_drawing import draw_tokens, order_around
from melreformer_hf.pipelines.pipeline_utils import bare
from melreformer_hf.training.recipes.sound_data import sound_crop

LONGEST = 60  # seconds of a recording that is read
TRIM_DB = 60.0
CROPS = 3  # of every training sound, for the classifier
BORDER = 8  # frames on each side of a gap that a patch has to fit


class Sounds(NamedTuple):
    """Real or made sounds of equal length.

    Args:
        waveforms: (sound, sample).
        labels: (sound,) numbers of classes.
    """

    waveforms: torch.Tensor
    labels: torch.Tensor


class LinearClassifier:
    """Multinomial logistic regression of standardized features.

    Args:
        features: (sound, feature).
        labels: (sound,).
        classes: how many.
        decay: of squared weights.
    """

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, classes: int, decay: float = 3e-3) -> None:
        self.mean, self.scale = features.mean(0), features.std(0).clamp(min=1e-3)
        inputs = self.standardized(features)
        self.weight = torch.zeros(classes, inputs.shape[1], requires_grad=True)
        self.bias = torch.zeros(classes, requires_grad=True)
        optimizer = torch.optim.LBFGS([self.weight, self.bias], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(inputs @ self.weight.T + self.bias, labels) + decay * self.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    def standardized(self, features: torch.Tensor) -> torch.Tensor:
        """Features in units of their spread over the training sounds."""
        return (features - self.mean) / self.scale

    @torch.no_grad()
    def accuracy(self, features: torch.Tensor, labels: torch.Tensor) -> float:
        """Share of the sounds whose class is named."""
        scores = self.standardized(features) @ self.weight.T + self.bias
        return (scores.argmax(1) == labels).float().mean().item()


def real_sounds(pipe: TokenGenerationPipeline, dataset: str, split: str, crops: int = 1) -> Sounds:
    """Crops of the sounds of a split, as trainings make them."""
    recordings = open_recordings(dataset, split, sampling_rate=pipe.sampling_rate)
    samples = pipe.max_columns(pipe.class_gpt) * pipe.column_frames * pipe.mel_config.hop_length
    waveforms, labels = [], []
    for index, item in enumerate(recordings.whole(LONGEST * pipe.sampling_rate, 10_000)):
        for crop in range(crops):
            generator = torch.Generator().manual_seed(index + 10_000 * crop)
            waveforms.append(sound_crop(item["waveform"], samples, TRIM_DB, generator))
            labels.append(bare(pipe.class_gpt).config.class_label(item["label"]))
    return Sounds(torch.stack(waveforms), torch.tensor(labels))


def mels_of(pipe: TokenGenerationPipeline, sounds: Sounds) -> torch.Tensor:
    """(sound, mel, frame) in whole columns."""
    return log_mel_spectrogram(sounds.waveforms, pipe.mel_config)


def audible(pipe: TokenGenerationPipeline, mels: torch.Tensor) -> torch.Tensor:
    """(sound, sample) of mels."""
    parts = [pipe.make_audible([part], torch.full((len(part),), part.shape[-1])) for part in mels.split(8)]
    return torch.cat([torch.cat(list(part), -1)[:, 0] for part in parts]).cpu()


@torch.no_grad()
def token_rows(pipe: TokenGenerationPipeline, held_out: Sounds, training: Sounds) -> dict[str, float]:
    """What tokens keep of held-out sounds."""
    mels, seen = mels_of(pipe, held_out), mels_of(pipe, training)
    codes = torch.cat([bare(pipe.mel_vqvae).encode(part) for part in mels.split(8)])
    made = torch.cat([pipe.mel_of_codes(part) for part in codes.split(8)])
    means = torch.stack([seen[training.labels == label].mean(0) for label in range(len(pipe.class_names))])
    size = bare(pipe.mel_vqvae).config.codebook_size
    flat = codes.flatten(1)[:, None]
    error, guess = (made - mels).abs().mean().item(), (means[held_out.labels] - mels).abs().mean().item()
    return {
        "log-mel L1 by tokens": error,
        "log-mel L1 of the class means": guess,
        "share of it": error / guess,
        "codewords used": codebook_usage(flat, size).item(),
        "perplexity": codebook_perplexity(flat, size).item(),
    }


def draw(pipe: TokenGenerationPipeline, count: int, sampling: TokenSampling, seed: int) -> Sounds:
    """So many sounds of every class."""
    waveforms, labels = [], []
    for label in range(len(pipe.class_names)):
        generator = torch.Generator().manual_seed(seed + label)
        waveforms.append(pipe(label, None, count, sampling=sampling, generator=generator).audios[:, 0].cpu())
        labels += [label] * count
    return Sounds(torch.cat(waveforms), torch.tensor(labels))


def spread(features: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean distance of sounds of one class, over all classes."""
    distances = [torch.pdist(features[labels == label]).mean() for label in labels.unique()]
    return torch.stack(distances).mean().item()


def class_rows(
    pipe: TokenGenerationPipeline,
    held_out: Sounds,
    training: Sounds,
    drawn: dict[str, Sounds],
) -> Iterator[tuple[str, float, float | None, float | None]]:
    """Name of the sounds, accuracy, diversity, distance to the nearest training sound; the last two over those of real ones."""
    embed, rate = LogMelStatistics(), pipe.sampling_rate
    seen = embed(training.waveforms, rate)
    judge = LinearClassifier(seen, training.labels, len(pipe.class_names))
    mels = mels_of(pipe, held_out)
    codes = [bare(pipe.mel_vqvae).encode(part) for part in mels.split(8)]
    decoded = torch.cat([pipe.mel_of_codes(part) for part in codes])
    sets = {
        "real, held out": held_out,
        "by the vocoder": Sounds(audible(pipe, mels), held_out.labels),
        "by tokens and vocoder": Sounds(audible(pipe, decoded), held_out.labels),
        **drawn,
    }
    known = judge.standardized(seen)
    real_spread, real_nearest = spread(known, training.labels), None
    for name, sounds in sets.items():
        features = embed(sounds.waveforms, rate)
        near = judge.standardized(features)
        nearest = nearest_neighbor_distance(near, known).median().item()
        real_nearest = real_nearest or nearest
        yield (
            name,
            judge.accuracy(features, sounds.labels),
            spread(near, sounds.labels) / real_spread,
            nearest / real_nearest,
        )


@torch.no_grad()
def gap_rows(
    pipe: TokenGenerationPipeline,
    held_out: Sounds,
    training: Sounds,
    seconds: float,
    sampling: TokenSampling,
    seed: int,
) -> dict[str, float]:
    """Costs of the tokens of a gap in nats, and log-mel L1 of what fills it."""
    size, rate = pipe.column_frames, pipe.mel_config.frame_rate
    mels, patches = mels_of(pipe, held_out), mels_of(pipe, training)
    # In the middle of what sounds: a gap in the silence behind it would be filled by anyone.
    loud = (mels.amax(1) > pipe.mel_config.floor_value + 1.0).sum(1)
    found: dict[str, list[float]] = {}
    for index, (mel, label) in enumerate(zip(mels, held_out.labels.tolist(), strict=True)):
        length = round(seconds * rate)
        begin = max(size, (int(loud[index]) - length) // 2)
        end = begin + length
        truth = mel[:, begin:end]
        generator = torch.Generator().manual_seed(seed + index)
        wave = held_out.waveforms[index].numpy()
        span = ((begin + 1e-3) / rate, (end - 1e-3) / rate)
        made = pipe.repair((wave, pipe.sampling_rate), [span], label, sampling=sampling, generator=generator).mels[0]
        share = (torch.arange(length) + 1.0) / (length + 1)
        line = mel[:, begin - 1 : begin] * (1 - share) + mel[:, end : end + 1] * share
        fitting = best_patch(mel, begin, end, patches[training.labels == label])
        rows = {"repaired": made[:, begin:end], "straight line": line, "best patch": fitting}
        for name, filled in rows.items():
            found.setdefault(f"log-mel L1, {name}", []).append((filled - truth).abs().mean().item())
        for name, nats in gap_costs(pipe, mel, label, begin, end).items():
            found.setdefault(name, []).append(nats)
    return {name: sum(values) / len(values) for name, values in found.items()}


def best_patch(mel: torch.Tensor, begin: int, end: int, training: torch.Tensor) -> torch.Tensor:
    """The stretch (mel, end - begin) of training sounds whose neighbors are nearest to those of a gap."""
    before, after = mel[:, max(begin - BORDER, 0) : begin], mel[:, end : end + BORDER]
    left, right, length = before.shape[1], after.shape[1], end - begin
    windows = training.unfold(2, left + length + right, 2)  # (sound, mel, place, frame)
    sides = torch.cat([windows[..., :left], windows[..., left + length :]], -1)
    wanted = torch.cat([before, after], 1)[None, :, None]
    sound, place = divmod(int((sides - wanted).abs().mean((1, 3)).argmin()), windows.shape[2])
    return windows[sound, :, place, left : left + length]


def gap_costs(pipe: TokenGenerationPipeline, mel: torch.Tensor, label: int, begin: int, end: int) -> dict[str, float]:
    """Nats per token of a gap, whose other tokens are those of the whole sound."""
    model, rows = bare(pipe.class_gpt), pipe.num_rows
    tokens = bare(pipe.mel_vqvae).codes_to_tokens(pipe.codes_of(mel))
    column = torch.arange(tokens.shape[1]) // rows
    missing = (column >= begin // pipe.column_frames) & (column < -(-end // pipe.column_frames))
    labels, found = torch.tensor([label]), {}
    for name, order in (
        ("nats, left to right", torch.arange(tokens.shape[1])),
        ("nats, knowing both sides", order_around(missing)),
    ):
        seen = tokens[:, order]
        logits = model(seen, labels, order=order[None]).logits[0, :-1].float()
        nats = cross_entropy(logits, seen[0], reduction="none")
        found[name] = nats[missing[order]].mean().item()
    return found


def time_rows(pipe: TokenGenerationPipeline) -> dict[str, float]:
    """Seconds of drawing and of a whole sound, the best of three."""
    model, count = pipe.class_gpt, bare(pipe.class_gpt).config.num_tokens
    condition, start = {"class_labels": torch.tensor([0])}, torch.zeros(1, 0, dtype=torch.long)

    def drawing(cached: bool) -> None:
        list(draw_tokens(model, condition, start, count, TokenSampling(use_cache=cached), [torch.Generator()]))

    tasks = {
        f"{count} tokens": lambda: drawing(True),
        f"{count} tokens without a cache": lambda: drawing(False),
        "a whole sound": lambda: pipe(0, generator=torch.Generator().manual_seed(0)),
    }
    return {name: min(_seconds(task) for _ in range(3)) for name, task in tasks.items()}


def _seconds(task) -> float:
    begin = time.perf_counter()
    task()
    return time.perf_counter() - begin


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown."""
    cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return "\n".join([f"| {' | '.join(row)} |" for row in [list(head), ["---"] * len(head), *cells]])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--dataset", required=True, help="built dataset with labels")
    parser.add_argument("--checkpoint", default="sounds-tiny", help="pipeline of sounds")
    parser.add_argument("--split", default="validation", help="of the held-out sounds")
    parser.add_argument("--count", type=int, default=12, help="sounds that are drawn of each class")
    parser.add_argument(
        "--guidance", type=float, nargs="+", default=[1.0, 2.0], help="how much classes are exaggerated"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="of drawing")
    parser.add_argument("--top-p", type=float, default=None, help="of drawing")
    parser.add_argument("--gap", type=float, default=0.5, help="seconds of a gap; 0 leaves gaps out")
    parser.add_argument("--seed", type=int, default=0, help="of drawing")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    pipe = TokenGenerationPipeline.from_pretrained(options.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    held_out = real_sounds(pipe, options.dataset, options.split)
    training = real_sounds(pipe, options.dataset, "train", CROPS)
    print(f"{len(held_out.labels)} sounds of {options.split!r}, {len(training.labels)} crops of training sounds\n")
    print(table(["tokens", "value"], list(token_rows(pipe, held_out, training).items())), "\n")
    samplings = {
        scale: TokenSampling(guidance_scale=scale, temperature=options.temperature, top_p=options.top_p)
        for scale in options.guidance
    }
    drawn = {
        f"drawn, guidance {scale:g}": draw(pipe, options.count, sampling, options.seed)
        for scale, sampling in samplings.items()
    }
    head = ["sounds", "class named", "diversity", "distance to the nearest training sound"]
    print(table(head, list(class_rows(pipe, held_out, training, drawn))), "\n", flush=True)
    if options.gap:
        sampling = TokenSampling(temperature=options.temperature, top_p=options.top_p)
        rows = gap_rows(pipe, held_out, training, options.gap, sampling, options.seed)
        print(table([f"gaps of {options.gap:g} s", "value"], list(rows.items())), "\n")
    print(table([f"time, {options.threads} threads", "seconds"], list(time_rows(pipe).items())))


if __name__ == "__main__":
    main()
