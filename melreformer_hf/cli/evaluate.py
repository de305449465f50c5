"""`melreformer evaluate`: the numbers of a pipeline on held-out recordings."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from melreformer_hf._files import write_json
from melreformer_hf._registration import register
from melreformer_hf.cli.errors import check_output_file

# metrics, and how many of what they were measured on
Measured = tuple[dict[str, float], dict[str, int]]
PARTS = ("vocoder", "expansion", "idea", "music", "generation")


def evaluate(
    checkpoint: Annotated[str, typer.Option(help="Pipeline: bundled name, folder, or Hub id.")],
    dataset: Annotated[
        str, typer.Option(help="Folder made by `melreformer data build`, or the id of one on the Hub.")
    ],
    split: Annotated[
        str, typer.Option(help="Split to measure on; `test` is read by nothing else, so read it once, at the end.")
    ] = "test",
    parts: Annotated[str, typer.Option(help=f"Any of {','.join(PARTS)}, with commas.")] = ",".join(PARTS),
    crops: Annotated[int | None, typer.Option(min=1, help="Held-out crops per part. Default: the recipes'.")] = None,
    crop_seconds: Annotated[
        float | None,
        typer.Option(min=0.1, help="Length in seconds of the crops of vocoder and expansion. Default: the recipes'."),
    ] = None,
    pieces: Annotated[int | None, typer.Option(min=1, help="Whole pieces to expand. Default: the recipe's.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length in seconds of the generation that is timed.")] = 20.0,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of ideas.")] = 20,
    generated: Annotated[int, typer.Option(min=2, help="Pieces that are generated to compare with music.")] = 16,
    embedding: Annotated[
        str | None,
        typer.Option(
            help="Audio model (folder or Hub id) whose features the Frechet distance compares. Default: log-mel "
            "statistics, which need no download."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Drives everything random.")] = 0,
    output: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("evaluation.json"),
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: torch's choice.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:NUMBER.")] = "auto",
) -> None:
    """Measure vocoder, expansion and idea model as the trainings' own validations do, and what is generated; print a table.

    The vocoder stands beside Griffin-Lim, the expansion beside the re-interpolated idea, ideas and generated music beside
    held-out ones. Split and numbers of items are told with the table. Needs the extra `train`.

    Example: melreformer evaluate --checkpoint piano-tiny --dataset data/mine --output numbers.json
    """
    chosen = _chosen_parts(parts)
    check_output_file(output, ".json")
    from melreformer_hf.cli.generate import load_pipeline
    from melreformer_hf.data.opening import open_recordings

    pipe = load_pipeline(checkpoint, device, threads)
    # Refused before anything is measured.
    open_recordings(dataset, split, sampling_rate=pipe.sampling_rate, channels=1)
    pipe.set_progress_bar_config(disable=True)
    frames = None if crop_seconds is None else pipe.frames_of(crop_seconds, "--crop-seconds")
    wanted = {"dataset": dataset, "split": split, "crops": crops, "frames": frames, "pieces": pieces, "steps": steps}
    wanted |= {"generated": generated, "embedding": embedding}
    measures: dict[str, Callable[[], Measured]] = {
        "vocoder": lambda: _measure_vocoder(pipe, wanted, seed),
        "expansion": lambda: _measure_expansion(pipe, wanted, seed),
        "idea": lambda: _measure_idea(pipe, wanted, seed),
        "music": lambda: _measure_music(pipe, wanted, seed),
        "generation": lambda: _measure_generation(pipe, seconds, steps, seed),
    }
    settings = {**wanted, "checkpoint": str(checkpoint), "seconds": seconds, "seed": seed, "device": str(pipe.device)}
    results, counts = {}, {}
    for part in chosen:
        typer.echo(f"measuring {part} ...", err=True)
        try:
            values, counts[part] = measures[part]()
        except ValueError as error:
            kept = f" What was measured before is in {output}." if results else ""
            raise ValueError(f"{part}: {error} See --crop-seconds and --parts.{kept}") from error
        results[part] = {name: float(value) for name, value in values.items()}
        _write(output, {"settings": settings, "n": counts, "metrics": results})  # minutes of work outlive what follows
    typer.echo(f"split {split!r} of {dataset}: {in_words(counts)}\n")
    typer.echo(markdown_table(results))
    typer.echo(f"wrote {output}")


def in_words(counts: dict[str, dict[str, int]]) -> str:
    """How many of what every part was measured on."""
    return "; ".join(
        f"{part}: {', '.join(f'{count} {name}' for name, count in numbers.items())}"
        for part, numbers in counts.items()
    )


def _chosen_parts(parts: str) -> list[str]:
    names = [name.strip() for name in parts.split(",") if name.strip()]
    unknown = [name for name in names if name not in PARTS]
    if unknown or not names:
        raise ValueError(f"--parts must be some of {', '.join(PARTS)} with commas between them, got {parts!r}.")
    return [name for name in PARTS if name in names]


def _validate(recipe_class: type, model, wanted: dict, model_fields: dict, options: dict, seed: int) -> Measured:
    from melreformer_hf.training.config import TrainingConfig
    from melreformer_hf.training.validation import run_validation

    given = {name: value for name, value in options.items() if value is not None}
    config = TrainingConfig(
        dataset=wanted["dataset"],
        output_dir=os.devnull,  # validation alone writes nothing
        max_steps=1,
        model=model_fields,
        options=given,
    )
    recipe = recipe_class(config)
    recipe.validation_split = recipe.reference_split = wanted["split"]
    found = run_validation(recipe, model, seed)
    return found.metrics, found.counts


def _measure_vocoder(pipe, wanted: dict, seed: int) -> Measured:
    from melreformer_hf.training.recipes.vocoder import VocoderRecipe

    options = {"validation_crops": wanted["crops"], "validation_frames": wanted["frames"]}
    fields = {"mel": pipe.mel_config.to_dict()}
    return _validate(VocoderRecipe, pipe.vocoder, wanted, fields, options, seed)


def _measure_expansion(pipe, wanted: dict, seed: int) -> Measured:
    from melreformer_hf.training.recipes.expansion import ExpansionRecipe

    options = {
        "validation_crops": wanted["crops"],
        "validation_crop_frames": wanted["frames"],
        "validation_pieces": wanted["pieces"],
    }
    names = ("architecture", "idea_columns", "fold_size", "num_decoder_layers", "decoder_window", "head")
    fields = {"mel": pipe.mel_config.to_dict(), **{name: getattr(pipe.expansion.config, name) for name in names}}
    return _validate(ExpansionRecipe, pipe.expansion, wanted, fields, options, seed)


def _measure_idea(pipe, wanted: dict, seed: int) -> Measured:
    from melreformer_hf.training.recipes.idea_diffusion import IdeaDiffusionRecipe

    unet = pipe.idea.config
    options = {
        "prediction_type": pipe.scheduler.config.prediction_type,
        "validation_ideas": wanted["crops"],
        "validation_samples": wanted["crops"],
        "sampling_steps": wanted["steps"],
        "min_frames": max(1, round(2**unet.log2_frames_min)),
        "max_frames": max(1, round(2**unet.log2_frames_max)),
        "fit_crops": 0,
    }
    fields = {"mel": pipe.mel_config.to_dict(), "num_columns": unet.num_columns}
    return _validate(IdeaDiffusionRecipe, pipe.idea, wanted, fields, options, seed)


def _measure_music(pipe, wanted: dict, seed: int) -> Measured:
    """Generated music beside held-out music of the same length, durations beside those the idea model learned."""
    import torch

    from melreformer_hf.data.opening import open_recordings
    from melreformer_hf.metrics import (
        AudioModelEmbedding,
        duration_ks,
        frechet_audio_distance,
        nearest_neighbor_distance,
    )
    from melreformer_hf.metrics.embeddings import LogMelStatistics

    mel, unet, count, rate = pipe.mel_config, pipe.idea.config, wanted["generated"], pipe.sampling_rate
    samples = (wanted["frames"] or round(10 * mel.frame_rate)) * mel.hop_length
    held_out, learned = (
        open_recordings(wanted["dataset"], split, sampling_rate=rate, channels=1)
        for split in (wanted["split"], "train")
    )
    real, known = (
        [crop["waveform"] for crop in recordings.fixed_crops(samples, max(count, 4))]
        for recordings in (held_out, learned)
    )
    seeds = [torch.Generator().manual_seed(seed + index) for index in range(count)]
    made = [
        pipe(audio_length_in_s=samples / rate, num_inference_steps=wanted["steps"], generator=one).audios[0, 0].cpu()
        for one in seeds
    ]
    _, frames = pipe.sample_idea(num_inference_steps=1, num_waveforms_per_prompt=len(real), generator=seeds[0])
    shortest, longest = (
        max(1, round(2**edge)) * mel.hop_length for edge in (unet.log2_frames_min, unet.log2_frames_max)
    )
    lengths = held_out.crops(shortest, longest, seed=seed, multiple=mel.hop_length)
    durations = torch.tensor(
        [lengths.item(index)["waveform"].shape[-1] / mel.hop_length for index in range(len(real))]
    )
    if wanted["embedding"] is not None:
        register()  # this package's own codecs embed, too
    embed = LogMelStatistics() if wanted["embedding"] is None else AudioModelEmbedding(wanted["embedding"])
    result = frechet_audio_distance(made, real, rate, embed)
    typer.echo(str(result), err=True)
    vectors = {name: embed(audio, rate) for name, audio in (("made", made), ("real", real), ("known", known))}
    near, far = (nearest_neighbor_distance(vectors[name], vectors["known"]).mean().item() for name in ("made", "real"))
    metrics = {
        "frechet_audio_distance": result.distance,
        "frechet_real_against_real": result.floor,
        "duration_ks": duration_ks(frames.cpu().float(), durations),
        "nearest_training_distance": near,
        "held_out_nearest_training_distance": far,
    }
    counts = {"generated pieces": len(made), "held-out crops": len(real), "training crops": len(known)}
    return metrics, counts


def _measure_generation(pipe, seconds: float, steps: int, seed: int) -> Measured:
    """Stream one piece after a short one that warms up."""
    import torch

    for _ in pipe.stream(num_inference_steps=1, audio_length_in_s=min(1.0, seconds)):
        pass
    started, first, chunks = time.perf_counter(), math.nan, []
    generator = torch.Generator().manual_seed(seed)
    for chunk in pipe.stream(num_inference_steps=steps, audio_length_in_s=seconds, generator=generator):
        chunks.append(chunk.cpu())
        first = time.perf_counter() - started if len(chunks) == 1 else first
    total = time.perf_counter() - started
    audio = torch.cat(chunks, dim=-1)
    return {
        "seconds_of_audio": audio.shape[-1] / pipe.sampling_rate,
        "seconds_to_first_audio": first,
        "seconds_in_all": total,
        "times_real_time": audio.shape[-1] / pipe.sampling_rate / total,
        "peak": audio.abs().max().item(),
        "loudness_rms": audio.square().mean().sqrt().item(),
    }, {"pieces": 1}


def markdown_table(results: dict[str, dict[str, float]]) -> str:
    """Rows of part, metric, value."""
    lines = ["| part | metric | value |", "|---|---|---|"]
    for part, metrics in results.items():
        lines += [f"| {part} | {name.replace('_', ' ')} | {value:.4g} |" for name, value in metrics.items()]
    return "\n".join(lines)


def _write(path: Path, values: dict) -> None:
    # NaN is no JSON; a metric that could not be computed is null.
    clean = {
        part: {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        for part, metrics in values["metrics"].items()
    }
    write_json(path, {**values, "metrics": clean})


__all__ = ["evaluate", "in_words", "markdown_table"]
