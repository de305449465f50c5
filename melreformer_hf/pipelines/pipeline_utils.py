"""What the package's pipelines share: loading from the Hub, generators, outputs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from huggingface_hub import snapshot_download

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

    def save(self, path: str | os.PathLike) -> list[Path]:
        """Write 16-bit WAV files: `path` for one row, `path` with -0, -1, ... before its suffix for several."""
        path = Path(path)
        rows = torch.as_tensor(self.audios)
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
        """
        name = str(pretrained_model_name_or_path)
        if not Path(name).exists() and (BUNDLED / name / "model_index.json").is_file():
            name = str(BUNDLED / name)
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", torch.float32)
        return super().from_pretrained(name, **kwargs)

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs) -> str:
        """Download a repository: safetensors, configurations and the card, never code or pickles."""
        names = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
        return snapshot_download(
            str(pretrained_model_name),
            allow_patterns=["*.json", "*.safetensors", "*.md"],
            **{name: kwargs[name] for name in names if kwargs.get(name) is not None},
        )


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
    if len(generator) != batch:
        raise ValueError(f"generator must be one or a list of {batch}, one per waveform, got {len(generator)}.")
    return [torch.Generator(g.device).manual_seed(int(row_seed(g))) for g in generator]


def row_seed(generator: torch.Generator) -> int:
    """A seed for one row from its own generator: the same that a single generator gives its first row."""
    return torch.randint(2**62, (1,), generator=generator, device=generator.device).item()


__all__ = ["BUNDLED", "MelPipeline", "MusicPipelineOutput", "row_generators"]
