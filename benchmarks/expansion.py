"""The expansion beside its baselines on held-out music, in one run: `python benchmarks/expansion.py --help`.

Every method gets the same ideas of the same crops and whole pieces. The table shows the log-mel L1 distance, its ratio
to that of the re-interpolated idea, the sharpness (energy of the change from frame to frame over audible bins, real
music 1), and the speed; the JSON file has all metrics of the validation. "without the decoder" is what the encoder
draws alone: the price and the gain of autoregression are the difference to the full model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch

from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.data.opening import open_recordings
from melreformer_hf.models.mel_reformer.modeling_mel_reformer import MelReformerModel
from melreformer_hf.training.recipes.expansion_data import ExpansionDataOptions, ExpansionValidator
from melreformer_hf.training.recipes.upsampler_model import ConvUpsamplerModel

Generate = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a trained MelReformerModel")
    parser.add_argument("--upsampler", type=Path, help="folder of a trained ConvUpsamplerModel, the second baseline")
    parser.add_argument("--dataset", required=True, help="folder made by `melreformer data build`, or a Hub id")
    parser.add_argument("--split", default="test", help="held-out split (default: test)")
    parser.add_argument("--crops", type=int, default=24, help="crops, of one recording each (default: 24)")
    parser.add_argument("--crop-frames", type=int, default=2048, help="their length (default: 2048, about 24 s)")
    parser.add_argument("--pieces", type=int, default=12, help="whole recordings (default: 12)")
    parser.add_argument("--max-frames", type=int, default=16384, help="longest of them (default: 16384)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    return parser.parse_args()


def drawn_only(model: MelReformerModel) -> Generate:
    """What the encoder draws, without decoder and seam net."""

    def generate(idea: torch.Tensor, num_frames: torch.Tensor) -> torch.Tensor:
        encoded = model.expansion.encode(model._normalize(idea), num_frames)
        start = torch.zeros_like(num_frames)
        drawn = model.expansion.decoder.curves(
            encoded.idea, encoded.coefficients, start, int(num_frames.max()), num_frames
        )
        return model._denormalize(drawn)

    return generate


def methods(arguments: argparse.Namespace, model: MelReformerModel) -> dict[str, Generate]:
    def columns(idea: torch.Tensor, num_frames: torch.Tensor) -> torch.Tensor:
        places = (torch.arange(int(num_frames[0])) + 0.5) * idea.shape[-1] / num_frames[0]
        return idea[..., places.long().clamp(max=idea.shape[-1] - 1)]

    found: dict[str, Generate] = {
        "re-interpolated idea": lambda idea, frames: resize_mel(idea, int(frames[0])),
        "column means": columns,
    }
    if arguments.upsampler:
        found["convolutional upsampler"] = (
            ConvUpsamplerModel.from_pretrained(arguments.upsampler, dtype=torch.float32).eval().generate
        )
    found["MelReformer without the decoder"] = drawn_only(model)
    found["MelReformer, free-running"] = model.generate
    return found


@torch.inference_mode()
def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    model = MelReformerModel.from_pretrained(arguments.model, dtype=torch.float32).eval()
    options = ExpansionDataOptions(
        validation_crops=arguments.crops,
        validation_crop_frames=arguments.crop_frames,
        validation_pieces=arguments.pieces,
        validation_max_frames=arguments.max_frames,
    )
    store = open_recordings(arguments.dataset, arguments.split)
    validator = ExpansionValidator(store, options, model.config.mel_config, model.config.idea_columns)
    print(
        f"{arguments.crops} crops of {arguments.crop_frames} frames and {arguments.pieces} whole pieces of split "
        f"{arguments.split!r}, {arguments.threads} threads, torch {torch.__version__}\n"
    )
    heads = ["method", "crops: L1", "ratio", "sharpness", "pieces: L1", "ratio", "sharpness", "x real time"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    results = {}
    for name, generate in methods(arguments, model).items():
        results[name] = metrics = validator(generate).metrics
        keys = [f"{group}_{key}" for group in ("crops", "pieces") for key in ("mel_l1", "ratio", "sharpness")]
        cells = [f"{metrics[key]:.3f}" for key in keys] + [f"{metrics['times_real_time']:.0f}"]
        print("| " + " | ".join([name, *cells]) + " |", flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
