"""`melreformer convert`, `melreformer assemble` and `melreformer push`."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Annotated

import typer

FAMILIES = {
    "mel_reformer": "models.mel_reformer.modeling_mel_reformer.MelReformerModel",
    "mel_vqvae": "models.mel_vqvae.modeling_mel_vqvae.MelVqvaeModel",
    "class_gpt": "models.class_gpt.modeling_class_gpt.ClassGptModel",
    "codec_lm": "models.codec_lm.modeling_codec_lm.CodecLMModel",
    "gpt_vae": "models.gpt_vae.modeling_gpt_vae.GptVaeModel",
    "frame_transformer": "models.frame_transformer.modeling_frame_transformer.FrameTransformerModel",
    "rq_transformer": "models.rq_transformer.modeling_rq_transformer.RQTransformerModel",
    "soundstream": "models.soundstream.modeling_soundstream.SoundStreamModel",
    "hifi_vocoder": "models.hifi_vocoder.modeling_hifi_vocoder.HifiVocoderModel",
    "melgan_vocoder": "models.melgan_vocoder.modeling_melgan_vocoder.MelGanVocoderModel",
    "idea_stylegan2": "models.idea_stylegan2.modeling_idea_stylegan2.IdeaStyleGan2Model",
}


def convert(
    family: Annotated[str, typer.Option(help=f"One of: {', '.join(FAMILIES)}.")],
    checkpoint: Annotated[
        Path, typer.Option(help="The original program's checkpoint; pickles with code are refused.")
    ],
    arguments: Annotated[Path, typer.Option(help="JSON file with the original constructor's arguments.")],
    output: Annotated[Path, typer.Option(help="Folder for config.json and model.safetensors.")],
) -> None:
    """Convert a checkpoint of an original program into one that `from_pretrained` loads.

    Example: melreformer convert --family hifi_vocoder --checkpoint generator_v1 --arguments config_v1.json --output v1
    """
    if family not in FAMILIES:
        raise ValueError(f"--family must be one of {sorted(FAMILIES)}, got {family!r}.")
    if not arguments.is_file():
        raise FileNotFoundError(f"No JSON file of arguments at {arguments}.")
    module, name = FAMILIES[family].rsplit(".", 1)
    model_class = getattr(importlib.import_module(f"melreformer_hf.{module}"), name)
    try:
        values = json.loads(arguments.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"--arguments {arguments} is not valid JSON: {error}") from error
    model = model_class.from_original(checkpoint, values)
    model.save_pretrained(output)
    count = sum(parameter.numel() for parameter in model.parameters())
    typer.echo(f"wrote {name} with {count:,} parameters to {output}")


def assemble(
    unet: Annotated[str, typer.Option(help="Trained IdeaUNetModel: folder or Hub id.")],
    expansion: Annotated[str, typer.Option(help="Trained MelReformerModel.")],
    vocoder: Annotated[str, typer.Option(help="Trained HifiVocoderModel.")],
    output: Annotated[Path, typer.Option(help="Folder of the pipeline.")],
    dtype: Annotated[
        str, typer.Option(help="Precision of the stored weights: float32, bfloat16, float16.")
    ] = "float32",
    scheduler: Annotated[str, typer.Option(help="dpm or ddim.")] = "dpm",
    prediction_type: Annotated[
        str, typer.Option(help="What the idea model was trained to predict: v_prediction or sample.")
    ] = "v_prediction",
    refine_steps: Annotated[int | None, typer.Option(help="Consistency steps of an inverse-STFT vocoder.")] = None,
    card: Annotated[Path | None, typer.Option(help="JSON: title, license, data, recipe, metrics (Markdown).")] = None,
) -> None:
    """Join trained parts into a pipeline that `MelReformerPipeline.from_pretrained` loads.

    Parts of different mel contracts are refused.

    Example: melreformer assemble --unet runs/idea/best --expansion runs/expansion/best --vocoder runs/vocoder/best --output mine
    """
    import torch

    from melreformer_hf.models.hifi_vocoder.modeling_hifi_vocoder import HifiVocoderModel
    from melreformer_hf.models.idea_unet.unet_idea import IdeaUNetModel, make_scheduler
    from melreformer_hf.models.mel_reformer.modeling_mel_reformer import MelReformerModel
    from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline

    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"--dtype must be float32, bfloat16 or float16, got {dtype!r}.")
    if prediction_type not in ("v_prediction", "sample"):
        raise ValueError(f"--prediction-type must be v_prediction or sample, got {prediction_type!r}.")
    details = json.loads(card.read_text(encoding="utf-8")) if card is not None else None
    changes = {} if refine_steps is None else {"refine_steps": refine_steps}
    idea = IdeaUNetModel.from_pretrained(unet)
    idea.register_to_config(_name_or_path=output.name)  # diffusers would save the folder it came from
    pipe = MelReformerPipeline(
        unet=idea,
        scheduler=make_scheduler(scheduler, prediction_type),
        expansion=MelReformerModel.from_pretrained(expansion),
        vocoder=HifiVocoderModel.from_pretrained(vocoder, **changes),
    )
    pipe.to(getattr(torch, dtype)).save_pretrained(output, card=details)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file()) / 1e6
    typer.echo(f"wrote a pipeline of {size:.1f} MB to {output}")


def push(
    folder: Annotated[Path, typer.Argument(help="Saved pipeline, model or dataset.")],
    repo_id: Annotated[str, typer.Argument(help="user/name on the Hub.")],
    repo_type: Annotated[str, typer.Option(help="model, dataset or space.")] = "model",
    private: Annotated[bool, typer.Option(help="Keep a new repository private.")] = False,
) -> None:
    """Upload a folder to the Hugging Face Hub (log in with `hf auth login` first).

    Example: melreformer push mine me/piano --private
    """
    from melreformer_hf.hub.push import push_folder

    typer.echo(f"uploaded to {push_folder(folder, repo_id, repo_type, private)}")


__all__ = ["assemble", "convert", "push"]
