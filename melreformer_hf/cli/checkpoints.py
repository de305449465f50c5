"""`melreformer convert`, `melreformer assemble` and `melreformer push`."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from melreformer_hf._files import write_text
from melreformer_hf._registration import CONVERTIBLE, FAMILIES, register
from melreformer_hf.cli.generate import quiet_libraries

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_INT8_PARTS = ("composer", "expansion", "class_gpt")  # those with large matrices
_Tokenizer = Annotated[
    str | None, typer.Option(help="Trained MelVqvaeModel, of a pipeline of sounds: folder or Hub id.")
]
_ClassGpt = Annotated[str | None, typer.Option(help="Trained ClassGptModel, with --mel-vqvae: folder or Hub id.")]
_GptVae = Annotated[str | None, typer.Option(help="Trained GptVaeModel, with --mel-vqvae: folder or Hub id.")]
_Int8 = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PART",
        help="Store the matrices of composer, expansion or class_gpt as 8-bit integers, half of float16. Repeat it for "
        "several.",
    ),
]


def convert(
    family: Annotated[str, typer.Option(help=f"One of: {', '.join(CONVERTIBLE)}.")],
    checkpoint: Annotated[
        Path, typer.Option(help="The original program's checkpoint; pickles with code are refused.")
    ],
    arguments: Annotated[Path, typer.Option(help="JSON or YAML file with the original constructor's arguments.")],
    output: Annotated[Path, typer.Option(help="Folder for config.json and model.safetensors.")],
    mel: Annotated[
        str | None,
        typer.Option(
            help="Mel contract, where it is not the original's: a preset of MelConfig or a JSON file of one."
        ),
    ] = None,
    codebooks: Annotated[
        Path | None, typer.Option(help="rq_transformer: the RQ-VAE's checkpoint, where its codebooks are needed.")
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(
            help="Licence of the weights for the card, as the Hub names it. Default: the original's, if known."
        ),
    ] = None,
) -> None:
    """Convert a checkpoint of an original program into one that `from_pretrained` loads.

    What loads, family by family, is told in docs/weights.md.

    Example: melreformer convert --family hifi_vocoder --checkpoint generator_v1 --arguments config_v1.json --output v1
    """
    if family not in CONVERTIBLE:
        raise ValueError(f"--family must be one of {sorted(CONVERTIBLE)}, got {family!r}.")
    if not arguments.is_file():
        raise FileNotFoundError(f"No JSON or YAML file of arguments at {arguments}.")
    values = _read_values(arguments, "--arguments")
    quiet_libraries()
    name = FAMILIES[family].model
    model_class = getattr(importlib.import_module("melreformer_hf"), name)
    accepted = model_class.original_format.options
    extra = {}
    for option, value, read in (("mel", mel, _read_mel), ("codebooks", codebooks, _read_codebooks)):
        if value is None:
            continue
        if option not in accepted:
            raise ValueError(f"--{option} is not for the family {family}; leave it out (got {value}).")
        extra[option] = read(value)
    model = model_class.from_original(checkpoint, values, **extra)
    details = {
        "license": license or FAMILIES[family].weights_license,
        "data": f"That of the original checkpoint `{checkpoint.name}`, from which the weights were converted.",
        "recipe": "`melreformer convert`; the weights are those of the original program.",
    }
    model.save_pretrained(output, card=details)
    count = sum(parameter.numel() for parameter in model.parameters())
    typer.echo(f"wrote {name} with {count:,} parameters to {output}")


def _read_values(path: Path, option: str) -> dict:
    if path.suffix in (".yaml", ".yml"):
        from melreformer_hf.training.arguments import read_yaml  # of the extra `train`

        return read_yaml(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{option} {path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{option} {path} must hold names and values, got {type(values).__name__}.")
    return values


def _read_mel(mel: str) -> dict:
    from melreformer_hf.audio.mel import MelConfig

    path = Path(mel)
    if path.suffix in (".json", ".yaml", ".yml"):
        return MelConfig.from_dict(_read_values(path, "--mel")).to_dict()
    return MelConfig.preset(mel).to_dict()


def _read_codebooks(path: Path):
    from melreformer_hf.models.rq_transformer.weights_rq_transformer import codebooks_from_original
    from melreformer_hf.originals.checkpoints import load_original_state_dict

    state = load_original_state_dict(path, "state_dict")
    # A whole RQ-VAE names its quantizer before them.
    return codebooks_from_original({key.removeprefix("quantizer."): value for key, value in state.items()})


def assemble(
    vocoder: Annotated[str, typer.Option(help="Trained HifiVocoderModel: folder or Hub id.")],
    output: Annotated[Path, typer.Option(help="Folder to write the pipeline to.")],
    idea: Annotated[
        str | None, typer.Option(help="Trained IdeaUNetModel or IdeaStyleGan2Model: folder or Hub id.")
    ] = None,
    expansion: Annotated[
        str | None, typer.Option(help="Trained MelReformerModel, with --idea: folder or Hub id.")
    ] = None,
    composer: Annotated[str | None, typer.Option(help="Trained NoteTransformerModel: folder or Hub id.")] = None,
    performer: Annotated[
        str | None, typer.Option(help="Trained NotePerformerModel, with --composer: folder or Hub id.")
    ] = None,
    ear: Annotated[str | None, typer.Option(help="Trained NoteEarModel, beside a composer: folder or Hub id.")] = None,
    mel_vqvae: _Tokenizer = None,
    class_gpt: _ClassGpt = None,
    gpt_vae: _GptVae = None,
    dtype: Annotated[
        str, typer.Option(help="Precision of the stored weights: float32, bfloat16 or float16 (half the size).")
    ] = "float32",
    int8: _Int8 = None,
    scheduler: Annotated[
        str, typer.Option(help="How ideas are denoised: dpm (DPM-Solver++, about 20 steps) or ddim (about 50).")
    ] = "dpm",
    prediction_type: Annotated[
        str | None,
        typer.Option(
            help="What the idea model was trained to predict: sample or v_prediction. Default: what its training.json "
            "says, else sample."
        ),
    ] = None,
    refine_steps: Annotated[
        int | None,
        typer.Option(min=0, help="Consistency steps of an inverse-STFT vocoder. Default: those of its configuration."),
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(
            help="JSON file for the model card: title, license, data, recipe, metrics (Markdown texts). Default: what "
            "the cards of the parts say."
        ),
    ] = None,
) -> None:
    """Join trained parts into a folder that `from_pretrained` loads: idea, expansion and vocoder as MelReformerPipeline;
    composer, performer, vocoder and ear as MidiGenerationPipeline; all of them as either. A tokenizer of mels with a class
    GPT, a GPT-VAE or both becomes a TokenGenerationPipeline.

    Parts of different mel contracts are refused.

    Example: melreformer assemble --idea runs/idea/best --expansion runs/expansion/best --vocoder runs/vocoder/best --output mine
    """
    from melreformer_hf.hub.int8 import store_as_int8

    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"--dtype must be float32, bfloat16 or float16, got {dtype!r}.")
    parts = {"idea": idea, "expansion": expansion, "vocoder": vocoder}
    parts |= {"composer": composer, "performer": performer, "ear": ear}
    parts |= {"mel_vqvae": mel_vqvae, "class_gpt": class_gpt, "gpt_vae": gpt_vae}
    _check_pairs(parts, int8 or ())
    prediction_type = None if idea is None else _prediction_type(prediction_type, Path(idea))
    changes = {} if refine_steps is None else {"refine_steps": refine_steps}
    _save(_pipelines(parts, scheduler, prediction_type, changes), output, dtype, _card_details(parts, card))
    for name in int8 or ():
        store_as_int8(output / name)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file()) / 1e6
    typer.echo(f"wrote a pipeline of {size:.1f} MB to {output}")


def _save(pipelines: Iterator[DiffusionPipeline], output: Path, dtype: str, details: dict) -> None:
    """Write pipelines into one folder; the last is the one that `DiffusionPipeline.from_pretrained` finds there."""
    quiet_libraries()
    register()  # so that the saved pipeline names the package, not the modules of its parts
    for pipe in pipelines:
        _store(pipe, dtype)
        pipe.save_pretrained(output, card=details)
    _compute_in_full_precision(output)


def _card_details(parts: dict[str, str | None], card: Path | None) -> dict:
    """Texts of the card: what the file says, else what the cards of the parts say.

    Raises:
        FileNotFoundError: there is no such file.
    """
    from melreformer_hf.hub.cards import joined_details

    if card is not None and not card.is_file():
        raise FileNotFoundError(f"No JSON file for the card at {card}.")
    given = {"idea model" if name == "idea" else name: part for name, part in parts.items() if part is not None}
    return joined_details(given) | (_read_values(card, "--card") if card is not None else {})


def _check_pairs(parts: dict[str, str | None], int8: Sequence[str]) -> None:
    """Refuse parts that make no pipeline.

    Raises:
        ValueError: names the option that is missing.
    """
    for first, second in (("idea", "expansion"), ("composer", "performer")):
        for one, other in ((first, second), (second, first)):
            if parts[one] is not None and parts[other] is None:
                raise ValueError(f"--{one} needs --{other}: a pipeline has both.")
    drawing = parts["class_gpt"] is not None or parts["gpt_vae"] is not None
    if drawing != (parts["mel_vqvae"] is not None):
        raise ValueError("--mel-vqvae needs --class-gpt or --gpt-vae, and either of these needs --mel-vqvae.")
    if parts["idea"] is None and parts["composer"] is None and not drawing:
        raise ValueError(
            "Give --idea and --expansion, or --composer and --performer, or all four; or --mel-vqvae and --class-gpt."
        )
    if parts["ear"] is not None and parts["composer"] is None:
        raise ValueError("--ear needs --composer and --performer: it is a part of their pipeline.")
    for name in int8:
        if name not in _INT8_PARTS:
            raise ValueError(f"--int8 must be one of {', '.join(_INT8_PARTS)}, got {name!r}.")
        if parts[name] is None:
            raise ValueError(f"--int8 {name} needs --{name.replace('_', '-')}.")


def _pipelines(
    parts: dict[str, str | None], scheduler: str, prediction_type: str | None, changes: dict
) -> Iterator[DiffusionPipeline]:
    """The pipelines that the parts make, that of notes first."""
    from melreformer_hf.models.hifi_vocoder.modeling_hifi_vocoder import HifiVocoderModel
    from melreformer_hf.models.idea_unet.unet_idea import IdeaUNetModel, make_scheduler
    from melreformer_hf.models.mel_reformer.modeling_mel_reformer import MelReformerModel
    from melreformer_hf.models.note_ear.modeling_note_ear import NoteEarModel
    from melreformer_hf.models.note_performer.modeling_note_performer import NotePerformerModel
    from melreformer_hf.models.note_transformer.modeling_note_transformer import NoteTransformerModel
    from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline
    from melreformer_hf.pipelines.pipeline_midi_generation import MidiGenerationPipeline

    vocoder = HifiVocoderModel.from_pretrained(parts["vocoder"], **changes)
    if parts["mel_vqvae"] is not None:
        yield _sounds(parts, vocoder)
    if parts["composer"] is not None:
        yield MidiGenerationPipeline(
            composer=NoteTransformerModel.from_pretrained(parts["composer"]),
            performer=NotePerformerModel.from_pretrained(parts["performer"]),
            vocoder=vocoder,
            ear=None if parts["ear"] is None else NoteEarModel.from_pretrained(parts["ear"]),
        )
    if parts["idea"] is not None:
        drawing = _load_idea(parts["idea"])
        yield MelReformerPipeline(
            idea=drawing,
            scheduler=make_scheduler(scheduler, prediction_type) if isinstance(drawing, IdeaUNetModel) else None,
            expansion=MelReformerModel.from_pretrained(parts["expansion"]),
            vocoder=vocoder,
        )


def _sounds(parts: dict[str, str | None], vocoder) -> DiffusionPipeline:
    """The pipeline of sounds of the parts."""
    from melreformer_hf.models.class_gpt.modeling_class_gpt import ClassGptModel
    from melreformer_hf.models.gpt_vae.modeling_gpt_vae import GptVaeModel
    from melreformer_hf.models.mel_vqvae.modeling_mel_vqvae import MelVqvaeModel
    from melreformer_hf.pipelines.pipeline_token_generation import TokenGenerationPipeline

    optional = {"class_gpt": ClassGptModel, "gpt_vae": GptVaeModel}
    loaded = {
        name: None if parts[name] is None else kind.from_pretrained(parts[name]) for name, kind in optional.items()
    }
    return TokenGenerationPipeline(MelVqvaeModel.from_pretrained(parts["mel_vqvae"]), vocoder, **loaded)


def _store(pipe: DiffusionPipeline, dtype: str) -> None:
    """Convert all parts to the precision in which they are to be stored."""
    import torch

    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            # Not by the method of diffusers' models, which warns of an empty list of parts to be kept in float32.
            torch.nn.Module.to(part, getattr(torch, dtype))


def _compute_in_full_precision(output: Path) -> None:
    """Half the size on disk, but computed in float32 wherever nothing else is asked for."""
    for path in output.glob("*/config.json"):
        values = json.loads(path.read_text(encoding="utf-8"))
        if "dtype" in values:
            write_text(path, json.dumps({**values, "dtype": "float32"}, indent=2) + "\n")


def _load_idea(name: str):
    """A trained idea model of either kind, told apart by its configuration."""
    from melreformer_hf.models.idea_stylegan2.modeling_idea_stylegan2 import IdeaStyleGan2Model
    from melreformer_hf.models.idea_unet.unet_idea import IdeaUNetModel

    kind = IdeaUNetModel.load_config(name)  # the file has the same name in both libraries
    adversarial = kind.get("model_type") == IdeaStyleGan2Model.config_class.model_type
    return (IdeaStyleGan2Model if adversarial else IdeaUNetModel).from_pretrained(name)


def _prediction_type(asked: str | None, idea: Path) -> str:
    """What the idea model predicts: as asked, as its training wrote down, or the recipe's default.

    Raises:
        ValueError: an unknown value, or one that is not what the model was trained for; ideas would be noise.
    """
    if asked not in (None, "v_prediction", "sample"):
        raise ValueError(f"--prediction-type must be v_prediction or sample, got {asked!r}.")
    told = idea / "training.json"
    if not told.is_file():
        return asked or "sample"
    settings = _read_values(told, "--idea's").get("config", {})
    trained = settings.get("options", {}).get("prediction_type", "sample")
    if asked not in (None, trained):
        raise ValueError(f"--prediction-type {asked}: {told} says that the idea model was trained for {trained!r}.")
    return trained


def push(
    folder: Annotated[Path, typer.Argument(help="Saved pipeline, model or dataset.")],
    repo_id: Annotated[str, typer.Argument(help="user/name on the Hub.")],
    repo_type: Annotated[str, typer.Option(help="model, dataset or space.")] = "model",
    private: Annotated[bool, typer.Option(help="Keep a new repository private.")] = False,
) -> None:
    """Upload a folder to the Hugging Face Hub. Log in with `hf auth login` first.

    Example: melreformer push mine me/piano --private
    """
    from melreformer_hf.hub.push import push_folder

    typer.echo(f"uploaded to {push_folder(folder, repo_id, repo_type, private)}")


__all__ = ["assemble", "convert", "push"]
