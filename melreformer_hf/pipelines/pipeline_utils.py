"""What the package's pipelines share: loading from the Hub, generators, outputs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import nn

from melreformer_hf.audio.io import write_wav
from melreformer_hf.hub.mixin import HubMixin

BUNDLED = Path(__file__).parents[1] / "checkpoints"


@dataclass
class MusicPipelineOutput(BaseOutput):
    """What a generation made.

    Args:
        audios: (batch, sample) tensor or array, full scale at 1; rows shorter than the longest end in silence.
        mels: (batch, mel, frame) log-mels.
        ideas: (batch, mel, column) log-mel ideas.
        num_frames: (batch,) true lengths of the mels in frames.
        num_samples: (batch,) true lengths of the audios in samples.
        sampling_rate: samples per second.
    """

    audios: object
    mels: torch.Tensor
    ideas: torch.Tensor
    num_frames: torch.Tensor
    num_samples: torch.Tensor
    sampling_rate: int

    @property
    def durations(self) -> list[float]:
        """Length of every row in seconds."""
        return [samples / self.sampling_rate for samples in self.num_samples.tolist()]

    def save(self, path: str | os.PathLike, peak_db: float | None = None) -> list[Path]:
        """Write 16-bit WAV files: `path` for one row, `path` with -0, -1, ... before its suffix for several.

        Args:
            path: of the file.
            peak_db: every row is scaled so that its loudest sample has this level, in dB of full scale, at most 0;
                `None` keeps the model's level, which is that of its training recordings. Silence stays silence.

        Raises:
            ValueError: `peak_db` is above 0 or no number.
        """
        if peak_db is not None and not -math.inf < peak_db <= 0:
            raise ValueError(f"peak_db must be a number of at most 0, or None to keep the level, got {peak_db!r}.")
        path = Path(path)
        rows = torch.as_tensor(self.audios)
        if peak_db is not None:
            rows = rows / rows.abs().amax(-1, keepdim=True).clamp(min=1e-5) * 10 ** (peak_db / 20)
        names = [path] if len(rows) == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(len(rows))]
        return [
            write_wav(name, row[:length], self.sampling_rate)
            for name, row, length in zip(names, rows, self.num_samples.tolist(), strict=True)
        ]


class MelPipeline(HubMixin, DiffusionPipeline):
    """Base of the package's pipelines.

    diffusers loads components of other packages from folders only, and would refuse a Hub id; the base downloads the
    whole (pickle-free) repository first. Names of bundled checkpoints work in place of a path.
    """

    card_template = "pipeline_card.md"
    card_tags = ("music", "unconditional-audio-generation", "mel-spectrogram", "vocoder")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """Load from a folder, a Hub id, or the name of a checkpoint that comes with the package (`piano-tiny`).

        Weights are loaded in float32 unless `dtype` says otherwise, whatever precision they were stored in.

        Raises:
            ValueError: a folder without a pipeline, a name that is neither bundled nor a Hub id, or a component whose
                configuration or some of whose weights are missing (they would be random).
        """
        name = str(pretrained_model_name_or_path)
        if not Path(name).exists() and (BUNDLED / name / "model_index.json").is_file():
            name = str(BUNDLED / name)
        if Path(name).exists() and not (Path(name) / "model_index.json").is_file():
            raise ValueError(f"{name} is no saved pipeline: it has no model_index.json.")
        if not Path(name).exists() and (name.count("/") != 1 or name.startswith((".", "/"))):
            bundled = sorted(path.parent.name for path in BUNDLED.glob("*/model_index.json"))
            raise ValueError(
                f"No pipeline {name!r}: it is neither a folder, nor a bundled checkpoint ({', '.join(bundled)}), nor a "
                "Hub id like user/name."
            )
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", torch.float32)
        folder = Path(name if Path(name).exists() else cls.download(name, **kwargs))
        check_configurations(folder)
        pipe = super().from_pretrained(str(folder), **kwargs)
        for part, module in pipe.components.items():
            if isinstance(module, nn.Module) and part not in kwargs:
                check_weights(folder / part, module)
        return pipe

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs) -> str:
        """Download a repository: safetensors, configurations and the card, never code or pickles."""
        names = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
        return snapshot_download(
            str(pretrained_model_name),
            allow_patterns=["*.json", "*.safetensors", "*.md"],
            **{name: kwargs[name] for name in names if kwargs.get(name) is not None},
        )


def check_configurations(folder: Path) -> None:
    """Refuse a saved pipeline whose models have weights but no configuration: they would be built with default sizes.

    Raises:
        ValueError: names the file that is missing.
    """
    for weights in sorted(folder.glob("*/*.safetensors")):
        if not (weights.parent / "config.json").is_file():
            raise ValueError(f"{folder} is incomplete: {weights.parent.name}/config.json is missing.")


def check_weights(folder: Path, module: nn.Module) -> None:
    """Refuse a component whose files do not hold all of its weights in its shapes; the libraries would only warn.

    Args:
        folder: of the component, with safetensors files.
        module: the component as it was loaded.

    Raises:
        ValueError: no weights, or names the first that is missing or misshapen.
    """
    shapes: dict[str, list[int]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            shapes |= {key: file.get_slice(key).get_shape() for key in file.keys()}
    if not shapes:
        raise ValueError(f"{folder} holds no weights (*.safetensors).")
    expected = module.state_dict()
    present = {expected[key].data_ptr() for key in shapes if key in expected}
    for key, tensor in expected.items():
        if key not in shapes and (tensor.data_ptr() not in present or tensor.numel() == 0):
            raise ValueError(f"The weights in {folder} do not fit its configuration: {key!r} is missing.")
        if key in shapes and list(tensor.shape) != shapes[key]:
            raise ValueError(
                f"The weights in {folder} do not fit its configuration: {key!r} has shape {shapes[key]}, the "
                f"configuration asks for {list(tensor.shape)}."
            )


def check_callback(pipe: DiffusionPipeline, callback: Callable | None, tensor_inputs: Sequence[str]) -> list[str]:
    """The tensors that a callback asks for.

    Raises:
        ValueError: the callback cannot be called, or asks for what the pipeline does not tell.
    """
    if callback is not None and not callable(callback):
        raise ValueError(f"callback_on_step_end must be a function or None, got {callback!r}.")
    names = [tensor_inputs] if isinstance(tensor_inputs, str) else list(tensor_inputs)
    known = pipe._callback_tensor_inputs
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"callback_on_step_end_tensor_inputs must be among {known}, got {unknown}.")
    return names


def tell_callback(
    pipe: DiffusionPipeline,
    callback: Callable,
    names: list[str],
    step: int,
    timestep: torch.Tensor,
    tensors: dict[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Call a callback after a denoising step; `tensors` with the entries replaced that it returns.

    Raises:
        ValueError: it returned no dictionary, or tensors of another shape.
    """
    returned = callback(pipe, step, timestep, {name: tensors[name] for name in names})
    if not isinstance(returned, dict):
        raise ValueError(
            f"callback_on_step_end must return the dictionary of tensors that it was given, got {returned!r}."
        )
    for name in names:
        if name in returned and returned[name].shape != tensors[name].shape:
            shapes = tuple(tensors[name].shape), tuple(returned[name].shape)
            raise ValueError(f"callback_on_step_end must keep the shape {shapes[0]} of {name}, returned {shapes[1]}.")
    return {name: returned.get(name, value) for name, value in tensors.items()}


def row_generators(
    generator: torch.Generator | list[torch.Generator] | None, batch: int
) -> list[torch.Generator | None]:
    """One generator per row, so that a row's samples do not depend on the rows beside it.

    A single generator is asked for one seed per row; a list must have one generator per row.

    Raises:
        ValueError: a list of another length.
    """
    if generator is None:
        return [None] * batch
    if isinstance(generator, torch.Generator):
        seeds = torch.randint(2**62, (batch,), generator=generator, device=generator.device).tolist()
        return [torch.Generator(generator.device).manual_seed(seed) for seed in seeds]
    rows = generator if isinstance(generator, (list, tuple)) else [generator]
    if len(rows) != batch or not all(isinstance(row, torch.Generator) for row in rows):
        raise ValueError(
            f"generator must be one torch.Generator or a list of {batch}, one per waveform, got {generator!r}."
        )
    return [torch.Generator(g.device).manual_seed(int(row_seed(g))) for g in rows]


def row_seed(generator: torch.Generator) -> int:
    """A seed for one row from its own generator: the same that a single generator gives its first row."""
    return torch.randint(2**62, (1,), generator=generator, device=generator.device).item()


__all__ = ["BUNDLED", "MelPipeline", "MusicPipelineOutput", "row_generators"]
