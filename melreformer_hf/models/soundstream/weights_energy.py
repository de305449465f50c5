"""Energy transformers of the original programs: their arguments and tensors, both ways.

`port` is LumenPallidium/energy_transformer (MIT), whose norm has a gain per feature; `jax` is
bhoov/energy-transformer-jax (Apache-2.0), whose number of steps and step size are arguments of its loop, not of the module,
and are given here as `depth` and `alpha`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import nn

from melreformer_hf.models.soundstream.energy_soundstream import MEMORIES, EnergyTransformer
from melreformer_hf.originals.arguments import (
    ANYTHING,
    COUNT,
    FLAG,
    NONE,
    NUMBER,
    POSITIVE,
    SHARE,
    SIZE,
    TEXT,
    either,
    take_arguments,
)
from melreformer_hf.originals.formats import OriginalFormat
from melreformer_hf.originals.renaming import rename_keys

_PORT = "original energy transformer (port)"
_PORT_TABLE = [
    ("mha.Wq", "attention.query"),
    ("mha.Wk", "attention.key"),
    ("mha.beta", "attention.beta"),
    ("hopfield.W", "memory.memories"),
    ("hopfield.beta", "memory.beta"),
    ("norm.", "norm."),
    ("pos_embedding", "position_table"),
]
_JAX = "original energy transformer (jax)"
_JAX_TABLE = [
    ("attn.Wq", "attention.query"),
    ("attn.Wk", "attention.key"),
    ("hn.Xi", "memory.memories"),
    ("lnorm.gamma", "norm.gain"),
    ("lnorm.delta", "norm.bias"),
]


def _configure_port(arguments: Mapping, state_dict: Mapping) -> dict:
    names = {
        "dim": ("hidden_size", SIZE),
        "hidden_dim": ("num_memories", SIZE),
        "n_heads": ("num_heads", SIZE),
        "n_iters_default": ("num_steps", SIZE),
        "alpha": ("step_size", POSITIVE),
        "context": ("num_positions", COUNT),
        "hopfield_type": ("memory", TEXT),
    }
    # beta is where the learned temperatures begin, which the checkpoint holds; the others change no output.
    others = {"beta": either(NUMBER, NONE), "norm": ANYTHING, "use_positional_embedding": FLAG}
    others |= {"ema_decay": SHARE, "return_energy": FLAG}
    fields = take_arguments(arguments, names, others, _PORT, ("dim", "hidden_dim", "n_heads"))
    if arguments.get("norm", nn.LayerNorm) is not nn.LayerNorm:
        raise ValueError(f"norm must be torch.nn.LayerNorm: energies are of its output, got {arguments['norm']!r}.")
    if fields.get("memory", "relu") not in MEMORIES:
        raise ValueError(f"hopfield_type must be one of {MEMORIES}, got {fields['memory']!r}.")
    if not arguments.get("use_positional_embedding", True):
        fields["num_positions"] = 0
    positions = "table" if fields.get("num_positions") else "none"
    return fields | {"norm": "layer", "positions": positions, "learned_temperature": True, "monotone": False}


def _port_to_ours(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    ours = rename_keys(tensors, _PORT_TABLE, _PORT)
    ours["memory.beta"] = ours["memory.beta"].reshape(())
    if "position_table" in ours:
        ours["position_table"] = ours["position_table"].squeeze(0)
    return ours


def _port_to_original(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    original = rename_keys(tensors, _PORT_TABLE, _PORT, reverse=True)
    # The rectified memory's temperature is a vector of one number there, the other memory's a number.
    shape = (1,) if model.memory.kind == "relu" else ()
    original["hopfield.beta"] = original["hopfield.beta"].reshape(shape)
    if "pos_embedding" in original:
        original["pos_embedding"] = original["pos_embedding"].unsqueeze(0)
    return original


def _configure_jax(arguments: Mapping, state_dict: Mapping) -> dict:
    names = {
        "D": ("hidden_size", SIZE),
        "Y": ("head_dim", SIZE),
        "n_heads": ("num_heads", SIZE),
        "depth": ("num_steps", SIZE),
        "alpha": ("step_size", POSITIVE),
    }
    fields = take_arguments(arguments, names, {"scale_mems": POSITIVE}, _JAX, ("D", "Y", "n_heads"))
    fields["num_memories"] = int(arguments.get("scale_mems", 4.0) * arguments["D"])
    return fields | {"positions": "none", "monotone": False}


_FORMATS = {
    "port": OriginalFormat(_PORT, _configure_port, _port_to_ours, _port_to_original),
    "jax": OriginalFormat(
        _JAX,
        _configure_jax,
        lambda tensors, model: rename_keys(tensors, _JAX_TABLE, _JAX),
        lambda tensors, model: rename_keys(tensors, _JAX_TABLE, _JAX, reverse=True),
    ),
}


def _format(origin: str) -> OriginalFormat:
    if origin not in _FORMATS:
        raise ValueError(f"origin must be one of {sorted(_FORMATS)}, got {origin!r}.")
    return _FORMATS[origin]


def energy_from_original(
    origin: str, state_dict_or_path: Mapping[str, torch.Tensor] | str | os.PathLike, original_arguments: Mapping
) -> EnergyTransformer:
    """An energy transformer with an original's weights, whose steps are never halved.

    Args:
        origin: `"port"` or `"jax"`.
        state_dict_or_path: its tensors by name (of the JAX arrays, by attribute path), or their file.
        original_arguments: of the original's constructor.

    Raises:
        ValueError: unknown origin or argument; missing, unexpected or misshapen tensors, by name.
    """
    return _format(origin).load(EnergyTransformer, state_dict_or_path, original_arguments, {})


def energy_to_original(origin: str, model: EnergyTransformer) -> dict[str, torch.Tensor]:
    """The inverse of `energy_from_original`."""
    return _format(origin).write(model, None)


__all__ = ["energy_from_original", "energy_to_original"]
