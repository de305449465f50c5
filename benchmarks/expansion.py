"""Expansions beside their baselines on held-out music, in one run: `python benchmarks/expansion.py --help`.

Every method gets the same ideas of the same crops and whole pieces; one that samples is asked several times for each. For
each group the table shows

- CRPS over all draws, which of a method without draws is its log-mel L1 distance, and its ratio to re-interpolation's;
- the log-mel L1 distance of single draws: samplers must have more than what draws the middle, see CRPS;
- sharpness in time and frequency over audible bins (real music 1), seams between what is made at once (none 1), and
  drift, the error at the end over that at the beginning;
- the ear's: F1 of the notes that it hears in the first draw beside those in the true mel, and the Frechet distance of what
  it reads notes from, in stretches of so many seconds, with the distance between halves of the true pieces as floor;
- milliseconds for a second of audio.

The JSON file has all of it. "without the decoder" is what the encoder draws alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.data.opening import open_recordings
from melreformer_hf.metrics import frechet_distance, mean_scores, transcription_scores
from melreformer_hf.models.mel_reformer.modeling_mel_reformer import MelReformerModel
from melreformer_hf.models.note_ear.modeling_note_ear import NoteEarModel
from melreformer_hf.pipelines.loading import BUNDLED
from melreformer_hf.training.recipes.expansion_data import ExpansionDataOptions, ExpansionValidator, Generate
from melreformer_hf.training.recipes.upsampler_model import ConvUpsamplerModel

COLUMNS = {
    "CRPS": "crps",
    "ratio": "ratio",
    "L1": "mel_l1",
    "sharp time": "sharpness",
    "freq": "sharpness_frequency",
    "seam": "seam",
    "drift": "drift",
    "note F1": "note_f1",
    "Frechet": "frechet",
    "ms/s": "cost",
}
_HALVINGS = 8


def read_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", nargs="+", required=True, help="folders of MelReformerModels, each FOLDER or NAME=FOLDER"
    )
    parser.add_argument("--upsampler", type=Path, help="folder of a trained ConvUpsamplerModel, another baseline")
    parser.add_argument("--ear", type=Path, help="folder of a NoteEarModel (default: piano-tiny's)")
    parser.add_argument("--dataset", required=True, help="folder made by `melreformer data build`, or a Hub id")
    parser.add_argument("--split", default="test", help="held-out split (default: test)")
    parser.add_argument("--crops", type=int, default=24, help="crops, of one recording each (default: 24)")
    parser.add_argument("--crop-frames", type=int, default=2048, help="their length (default: 2048, about 24 s)")
    parser.add_argument("--pieces", type=int, default=12, help="whole recordings (default: 12)")
    parser.add_argument("--max-frames", type=int, default=16384, help="longest of them (default: 16384)")
    parser.add_argument("--draws", type=int, default=4, help="of a sampler, of every piece (default: 4)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of samplers (default: 1)")
    parser.add_argument("--stretch", type=float, default=4.0, help="seconds of the ear's features (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the first draw; the others follow (default: 0)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    return parser.parse_args(words)


class Listener:
    """An ear that hears log-mels.

    Args:
        ear: of the mel contract of the expansions.
        seconds: of the stretches whose features are compared.
    """

    def __init__(self, ear: NoteEarModel, seconds: float) -> None:
        self.ear = ear
        self.frames = max(1, round(seconds * ear.config.mel_config.frame_rate))

    def features(self, mels: list[torch.Tensor]) -> list[torch.Tensor]:
        """(stretch, feature) of each (mel, frame): means of the last hidden layer, as of `NoteEarEmbedding`."""
        steps = max(1, self.frames // self.ear.config.fold_size)
        found = []
        for mel in mels:
            hidden = self.ear(mel[None]).last_hidden_state[0].float()  # (step, feature)
            whole = [part.mean(0) for part in hidden.split(steps) if len(part) == steps]
            found.append(torch.stack(whole or [hidden.mean(0)]))
        return found

    def notes(self, mels: list[torch.Tensor]) -> list:
        """Notes of each (mel, frame)."""
        return [self.ear.transcribe_mel(mel[None]) for mel in mels]


class ListeningValidator(ExpansionValidator):
    """`ExpansionValidator` that also listens."""

    def listen(self, listener: Listener) -> None:
        """Hear the true mels, which everything is compared with."""
        self.listener = listener
        self.true = {group: (listener.notes(mels), listener.features(mels)) for group, mels in self.targets.items()}

    def floors(self) -> dict[str, float]:
        """Frechet distance between random halves of the true pieces, by group."""
        generator, floors = torch.Generator().manual_seed(0), {}
        for group, (_, features) in self.true.items():
            found = []
            for _ in range(_HALVINGS):
                order, half = torch.randperm(len(features), generator=generator).tolist(), len(features) // 2
                sides = [torch.cat([features[index] for index in part]) for part in (order[:half], order[half:])]
                found.append(frechet_distance(*sides))
            floors[group] = sum(found) / len(found)
        return floors

    def measures(self, results, smooth, targets) -> dict[str, float]:
        group = next(name for name, mels in self.targets.items() if mels is targets)
        notes, features = self.true[group]
        heard = self.listener.notes(results)
        scores = mean_scores([transcription_scores(*pair) for pair in zip(heard, notes, strict=True)])
        ours = torch.cat(self.listener.features(results))
        return {
            **super().measures(results, smooth, targets),
            "note_f1": scores["onset_f1"],
            "frechet": frechet_distance(ours, torch.cat(features)),
        }


def drawn_only(model: MelReformerModel) -> Generate:
    """What the encoder draws, without decoder and head."""

    def generate(idea: torch.Tensor, num_frames: torch.Tensor, draw: int) -> torch.Tensor:
        encoded = model.expansion.encode(model._normalize(idea), num_frames)
        drawn = model.expansion.draw(encoded, torch.zeros_like(num_frames), int(num_frames.max()))
        return model._denormalize(drawn)

    return generate


def methods(
    arguments: argparse.Namespace, models: dict[str, MelReformerModel]
) -> dict[str, tuple[Generate, int, int]]:
    """By name: how it expands, how often it is asked, and how many frames it makes at once."""
    found: dict[str, tuple[Generate, int, int]] = {
        "re-interpolated idea": (lambda idea, frames, draw: resize_mel(idea, int(frames[0])), 1, 0)
    }
    if arguments.upsampler:
        upsampler = ConvUpsamplerModel.from_pretrained(arguments.upsampler, dtype=torch.float32).eval()
        found["convolutional upsampler"] = (lambda idea, frames, draw: upsampler.generate(idea, frames), 1, 0)
    for name, model in models.items():

        def generate(idea: torch.Tensor, frames: torch.Tensor, draw: int, model: MelReformerModel = model):
            settings = {"temperature": arguments.temperature} if model.samples else {}
            return model.generate(
                idea, frames, generator=torch.Generator().manual_seed(arguments.seed + draw), **settings
            )

        if model.config.architecture == "local":
            found[f"{name}: encoder alone"] = (drawn_only(model), 1, 0)
        found[name] = (generate, arguments.draws if model.samples else 1, model.config.fold_size)
    return found


def open_models(folders: Sequence[str]) -> dict[str, MelReformerModel]:
    pairs = [folder.split("=", 1) if "=" in folder else (Path(folder).name, folder) for folder in folders]
    return {name: MelReformerModel.from_pretrained(folder, dtype=torch.float32).eval() for name, folder in pairs}


@torch.inference_mode()
def main(words: Sequence[str] | None = None) -> None:
    arguments = read_arguments(words)
    torch.set_num_threads(arguments.threads)
    models = open_models(arguments.model)
    options = ExpansionDataOptions(
        validation_crops=arguments.crops,
        validation_crop_frames=arguments.crop_frames,
        validation_pieces=arguments.pieces,
        validation_max_frames=arguments.max_frames,
    )
    config = next(iter(models.values())).config
    store = open_recordings(arguments.dataset, arguments.split)
    validator = ListeningValidator(store, options, config.mel_config, config.idea_columns)
    ear = NoteEarModel.from_pretrained(arguments.ear or BUNDLED / "piano-tiny" / "ear", dtype=torch.float32).eval()
    ear.config.mel_config.check_matches(config.mel_config, "ear", "model")
    validator.listen(Listener(ear, arguments.stretch))
    floors = validator.floors()
    longest = max(mel.shape[-1] for mel in validator.targets["pieces"]) / config.mel_config.frame_rate
    print(
        f"{arguments.crops} crops of {arguments.crop_frames} frames and {len(validator.targets['pieces'])} whole pieces "
        f"(longest {longest:.0f} s) of split {arguments.split!r}, {arguments.draws} draws, temperature "
        f"{arguments.temperature}, seed {arguments.seed}, {arguments.threads} threads, torch {torch.__version__}\n"
    )
    results: dict[str, dict] = {
        "floors": floors,
        "arguments": {key: str(value) for key, value in vars(arguments).items()},
    }
    for name, (generate, draws, fold_size) in methods(arguments, models).items():
        validator.draws, validator.fold_size = draws, fold_size
        results[name] = validator(generate).metrics
        for group in validator.targets:
            results[name][f"{group}_cost"] = 1000 / validator.speeds[group]
        print(name, "measured", flush=True)
    for group in validator.targets:
        print(f"\n{group} (Frechet distance between halves of the true ones {floors[group]:.2f})\n")
        print("| | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 1))
        for name in methods(arguments, models):
            values = [results[name].get(f"{group}_{key}") for key in COLUMNS.values()]
            print(f"| {name} | " + " | ".join("" if value is None else f"{value:.3f}" for value in values) + " |")
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
