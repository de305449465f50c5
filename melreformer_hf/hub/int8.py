"""Weights that lie in files as 8-bit integers and are computed with as floating point.

A matrix of (row, column) becomes whole numbers -127..127 and one scale per row: `x.weight` (int8) and `x.weight_scale`
(float16). Half the bytes of float16, at the price of rounding to a 254th of each row's largest weight. The arithmetic is
that of the model's dtype: what is saved is size, on the disk and on the way, not time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.utils import cached_file

from melreformer_hf._files import replacing

WEIGHTS_NAME = "model.safetensors"
_STORAGE = {"format": "pt", "storage": "int8"}
_SCALE = "_scale"
_FEWEST = 4096  # values of a matrix that is worth it
_FETCHING = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token", "subfolder")


def to_int8(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Large matrices as integers and scales; everything else as it is."""
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if tensor.ndim != 2 or tensor.numel() < _FEWEST or not tensor.is_floating_point():
            stored[name] = tensor
            continue
        # The scale is rounded first, so that the integers make up for its error; rows of zeros stay zeros.
        scale = (tensor.float().abs().amax(1) / 127).to(torch.float16)
        whole = (tensor.float() / scale.float().clamp(min=1e-12)[:, None]).round().clamp(-127, 127)
        stored[name], stored[name + _SCALE] = whole.to(torch.int8), scale
    return stored


def from_int8(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `to_int8`, in float32; whole numbers of other kinds, such as tables of bits, stay as they are.

    Raises:
        ValueError: integers without a scale, or one that does not fit.
    """
    state = {}
    for name, tensor in stored.items():
        if tensor.dtype == torch.int8:
            scale = stored.get(name + _SCALE)
            if scale is None or scale.shape != tensor.shape[:1]:
                told = "none" if scale is None else f"shape {tuple(scale.shape)}"
                raise ValueError(f"{name}{_SCALE} must hold one scale per row of {tuple(tensor.shape)}, got {told}.")
            state[name] = tensor.float() * scale.float()[:, None]
        elif not (name.endswith(_SCALE) and name.removesuffix(_SCALE) in stored):
            state[name] = tensor.float() if tensor.is_floating_point() else tensor
    return state


def store_as_int8(folder: str | os.PathLike) -> Path:
    """Rewrite the weights of a saved model.

    Args:
        folder: with `model.safetensors`, in one file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = Path(folder) / WEIGHTS_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"No {WEIGHTS_NAME} in {folder}: int8 storage takes models that are saved in one file."
        )
    stored = to_int8(load_file(path))
    with replacing(path) as partial:
        save_file(stored, partial, metadata=_STORAGE)
    return path


def is_int8(path: str | os.PathLike) -> bool:
    """Whether a safetensors file was written by `store_as_int8`."""
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("storage") == _STORAGE["storage"]


class Int8StorageMixin:
    """Base of a transformers model class, before `PreTrainedModel`: `from_pretrained` also reads int8 storage."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, *args, **kwargs):
        """As of `PreTrainedModel`; weights that are stored as int8 become floating point, float32 unless `dtype` says
        otherwise.

        Raises:
            ValueError: scales are missing from the file.
        """
        path = None
        if pretrained_model_name_or_path is not None and kwargs.get("state_dict") is None:
            fetching = {name: kwargs[name] for name in _FETCHING if kwargs.get(name) is not None}
            # A model in several files, or none at all, is left to transformers and its messages.
            path = cached_file(
                pretrained_model_name_or_path, WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False, **fetching
            )
        if path is None or not is_int8(path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        state = from_int8(load_file(path))
        config = kwargs.pop("config", None)
        if config is None:
            config = cls.config_class.from_pretrained(pretrained_model_name_or_path, **fetching)
        if kwargs.get("dtype", kwargs.get("torch_dtype")) in (None, "auto"):
            kwargs.pop("torch_dtype", None)
            kwargs["dtype"] = torch.float32
        model = super().from_pretrained(None, *args, config=config, state_dict=state, **kwargs)
        model.name_or_path = model.config.name_or_path = str(pretrained_model_name_or_path)
        return model


__all__ = ["Int8StorageMixin", "from_int8", "is_int8", "store_as_int8", "to_int8"]
