"""Base of the package's pipelines: loading, seeds per row, progress, callbacks, hooks, threads."""

from __future__ import annotations

import json
import numbers
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download
from torch import nn

from melreformer_hf._files import write_text
from melreformer_hf._threads import calm_number, using_threads
from melreformer_hf.hub.mixin import HubMixin
from melreformer_hf.pipelines.loading import check_configurations, check_weights, locate

MAX_SECONDS = 6 * 3600.0


class AudioPipeline(HubMixin, DiffusionPipeline):
    """Base of the package's pipelines.

    diffusers loads components of other packages from folders only, and would refuse a Hub id; the base downloads the
    whole (pickle-free) repository first. Names of bundled checkpoints work in place of a path.

    A pipeline calls its components, or hands `module=` to their methods, and never reaches past `forward`: so it works
    with `enable_model_cpu_offload` and with components in wrappers such as `torch.compile(...)`. What is not computed
    (configurations, lengths) it asks of `bare(component)`.
    """

    card_template = "pipeline_card.md"
    card_tags = ("music", "unconditional-audio-generation", "mel-spectrogram", "vocoder")
    _callback_tensor_inputs: list[str] = []
    _interrupt = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """Load from a folder, a Hub id, or the name of a checkpoint that comes with the package (`piano-tiny`).

        Weights are loaded in float32 unless `dtype` says otherwise, whatever precision they were stored in.

        Raises:
            ValueError: a folder without a pipeline, a name that is neither bundled nor a Hub id, or a component whose
                configuration or some of whose weights are missing (they would be random).
        """
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", torch.float32)
        folder = locate(pretrained_model_name_or_path)
        if folder is None:
            folder = Path(cls.download(str(pretrained_model_name_or_path), **kwargs))
        check_configurations(folder)
        pipe = super().from_pretrained(str(folder), **kwargs)
        for part, module in pipe.components.items():
            if isinstance(module, nn.Module) and part not in kwargs:
                check_weights(folder / part, module)
        return pipe

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        """Components of another pipeline, with which this one shares a folder, are left alone: no warning is due."""
        known = cls._get_init_keys(cls)
        own = {name: value for name, value in config_dict.items() if name in known or not isinstance(value, list)}
        return super().extract_init_dict(own, **kwargs)

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Write `model_index.json`; what it names of another pipeline's components in the same folder stays named."""
        path = Path(save_directory) / self.config_name
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        index = json.loads(path.read_text(encoding="utf-8"))
        others = {
            name: value
            for name, value in before.items()
            if isinstance(value, list) and index.get(name, [None])[0] is None and (path.parent / name).is_dir()
        }
        if others:
            write_text(path, json.dumps(index | others, indent=2, sort_keys=True) + "\n")

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs) -> str:
        """Download a repository: safetensors, configurations and the card, never code or pickles."""
        names = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
        return snapshot_download(
            str(pretrained_model_name),
            allow_patterns=["*.json", "*.safetensors", "*.md"],
            **{name: kwargs[name] for name in names if kwargs.get(name) is not None},
        )

    @property
    def device(self) -> torch.device:
        """Where the components are; wrappers need not tell it."""
        modules = (part for part in self.components.values() if isinstance(part, nn.Module))
        return next((parameter.device for module in modules for parameter in module.parameters()), torch.device("cpu"))

    @contextmanager
    def telling(
        self, callback: Callable | None, tensor_inputs: Sequence[str], total: int | None
    ) -> Iterator[Callable[[int, torch.Tensor, dict], tuple[dict, bool]]]:
        """Progress bar and callback around the steps of a sampler.

        Args:
            callback: the user's, or `None`.
            tensor_inputs: the tensors that it asks for, among `_callback_tensor_inputs`.
            total: steps; `None` for a sampler without steps, which gets no bar.

        Yields:
            what a sampler calls after every step: `(step, timestep, tensors)` -> tensors to go on with, and whether to.

        Raises:
            ValueError: the callback cannot be called, or asks for what the pipeline does not tell.
        """
        names = check_callback(self, callback, tensor_inputs)
        self._interrupt = False
        if total is None:
            yield lambda step, timestep, tensors: (tensors, not self._interrupt)
            return
        with self.progress_bar(total=total) as bar:

            def told(step: int, timestep: torch.Tensor, tensors: dict) -> tuple[dict, bool]:
                if callback is not None:
                    tensors = tell_callback(self, callback, names, step, timestep, tensors)
                bar.update()
                return tensors, not self._interrupt

            yield told

    def calmly(self, chunks: Iterator[torch.Tensor], others: int = 0) -> Iterator[torch.Tensor]:
        """Make chunks with as many CPU threads as other work leaves free, and free offloaded components at the end.

        Args:
            chunks: are made when they are asked for.
            others: threads of our own that work meanwhile.
        """
        threads = max(1, calm_number(self._execution_device) - others)
        try:
            while True:
                with using_threads(threads):
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                yield chunk
        finally:
            self.maybe_free_model_hooks()


def bare(module: nn.Module) -> nn.Module:
    """A model without the wrappers around it, `torch.compile`'s and those that keep it as `.module`: to read its
    configuration, never to compute with it."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and not hasattr(module, "config"):
            inner = getattr(module, "module", None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def check_count(name: str, value: object, most: int | None = None) -> None:
    """Refuse what is no whole number of at least 1 (and at most `most`).

    Raises:
        ValueError: names the argument.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
    if most is not None and value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}.")


def check_seconds(name: str, seconds: object) -> float:
    """A duration as a float.

    Raises:
        ValueError: it is no positive number of at most six hours.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, numbers.Real) or not 0 < seconds <= MAX_SECONDS:
        raise ValueError(f"{name} must be a number of seconds above 0 and at most {MAX_SECONDS:.0f}, got {seconds!r}.")
    return float(seconds)


def check_number(name: str, value: object, low: float, high: float, which: str = "") -> float:
    """A number between limits as a float.

    Args:
        name: of the argument.
        value: as it was given.
        low: least value.
        high: greatest value.
        which: more about the rule.

    Raises:
        ValueError: names the argument.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low <= value <= high:
        rule = f"a number from {low:g} to {high:g}" + (f", {which}" if which else "")
        raise ValueError(f"{name} must be {rule}, got {value!r}.")
    return float(value)


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


class RowGenerators(list):
    """A generator, or `None`, per row, as `row_generators` made them. What gets them again goes on with them where they
    are, so that the steps of a pipeline, called one by one, draw what the pipeline as a whole draws."""


def row_generators(generator: torch.Generator | list[torch.Generator] | None, batch: int) -> RowGenerators:
    """One generator per row, so that a row's samples do not depend on the rows beside it.

    A single generator is asked for one seed per row; a list must have one generator per row.

    Raises:
        ValueError: a list of another length.
    """
    if generator is None:
        return RowGenerators([None] * batch)
    if isinstance(generator, RowGenerators) and len(generator) == batch:
        return generator
    if isinstance(generator, torch.Generator):
        seeds = torch.randint(2**62, (batch,), generator=generator, device=generator.device).tolist()
        return RowGenerators(torch.Generator(generator.device).manual_seed(seed) for seed in seeds)
    rows = generator if isinstance(generator, (list, tuple)) else [generator]
    if len(rows) != batch or not all(isinstance(row, torch.Generator) for row in rows):
        raise ValueError(
            f"generator must be one torch.Generator or a list of {batch}, one per waveform, got {generator!r}."
        )
    return RowGenerators(torch.Generator(g.device).manual_seed(int(row_seed(g))) for g in rows)


def row_seed(generator: torch.Generator) -> int:
    """A seed for one row from its own generator: the same that a single generator gives its first row."""
    return torch.randint(2**62, (1,), generator=generator, device=generator.device).item()


__all__ = [
    "MAX_SECONDS",
    "AudioPipeline",
    "RowGenerators",
    "bare",
    "check_callback",
    "check_count",
    "check_number",
    "check_seconds",
    "row_generators",
    "tell_callback",
]
