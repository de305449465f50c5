"""One description per original program, from which loading, writing and the round trip follow."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import nn

from melreformer_hf.originals.checkpoints import load_from_original, load_original_state_dict
from melreformer_hf.originals.weight_norm import fold_weight_norms, plain_state_dict, split_weight_norms

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class OriginalFormat:
    """How a module and the checkpoints of an original program become each other.

    Args:
        origin: what the checkpoint is, for messages.
        configure: keyword arguments of our class from (the original's arguments, its state dict, **options).
        to_ours: (its tensors without tables, weight norms folded; the module) -> tensors under our names.
        to_original: (our plain tensors, the module) -> its tensors, tables that follow from the arguments included.
        container: key under which its releases put the state dict.
        part: the tensors of a state dict that belong to the module.
        options: further arguments of `from_original`.
        fill: gives the module what is in none of its checkpoints, from the options, before loading.
        finish: computes what follows from the loaded weights.
        weight_norm: whether it writes weight norms if nothing else is asked for; `None`: it has none.
        normed: (original name of a plain tensor, the module) -> whether the original normalizes it.
        submodule: the part of our module that its checkpoint is of; empty for the whole.
        check: raises ValueError where a module has no counterpart there.
    """

    origin: str
    configure: Callable[..., dict]
    to_ours: Callable[[Tensors, nn.Module], Tensors]
    to_original: Callable[[Tensors, nn.Module], Tensors]
    container: str | None = None
    part: Callable[[Tensors], Tensors] = dict
    options: tuple[str, ...] = ()
    fill: Callable[..., None] | None = None
    finish: Callable[[nn.Module], None] | None = None
    weight_norm: bool | None = None
    normed: Callable[[str, nn.Module], bool] = lambda key, module: key.endswith(".weight")
    submodule: str = ""
    check: Callable[[nn.Module], None] | None = None

    def load(
        self, model_class: type[nn.Module], source: Tensors | str | os.PathLike, arguments: Mapping, options: Mapping
    ) -> nn.Module:
        """See `OriginalCheckpointMixin.from_original`."""
        for name in options:
            if name not in self.options:
                known = f"one of {self.options}" if self.options else "none"
                raise TypeError(f"{self.origin}: further arguments must be {known}, got {name!r}.")
        state_dict = self.part(load_original_state_dict(source, self.container))
        module = model_class(**self.configure(arguments, state_dict, **options))
        if self.fill is not None:
            self.fill(module, **options)
        load_from_original(
            module.get_submodule(self.submodule),
            state_dict,
            lambda tensors: self._to_ours(tensors, module),
            lambda tensors: self._to_original(tensors, module, self.weight_norm is not None),
            self.origin,
        )
        module.eval()
        if self.finish is not None:
            self.finish(module)
        return module

    def write(self, module: nn.Module, weight_norm: bool | None) -> dict[str, torch.Tensor]:
        """See `OriginalCheckpointMixin.to_original_state_dict`."""
        if weight_norm and self.weight_norm is None:
            raise ValueError(f"weight_norm must be False or None: the {self.origin} has no weight norms, got True.")
        if self.check is not None:
            self.check(module)
        tensors = plain_state_dict(module.get_submodule(self.submodule))
        norms = bool(self.weight_norm if weight_norm is None else weight_norm)
        # Copies: what is written must not change with the module, nor share memory (safetensors refuses that).
        return {
            key: value.detach().clone().contiguous()
            for key, value in self._to_original(tensors, module, norms).items()
        }

    def _to_ours(self, tensors: Tensors, module: nn.Module) -> Tensors:
        folded = tensors if self.weight_norm is None else fold_weight_norms(tensors, self.origin)
        return self.to_ours(folded, module)

    def _to_original(self, tensors: Tensors, module: nn.Module, weight_norm: bool) -> dict[str, torch.Tensor]:
        plain = dict(self.to_original(tensors, module))
        if not weight_norm:
            return plain
        names = {key for key in plain if self.normed(key, module)}
        split = split_weight_norms({key: plain[key] for key in names})
        return {key: value for key, value in plain.items() if key not in names} | split


class OriginalCheckpointMixin:
    """`from_original` and `to_original_state_dict` of a class whose `original_format` describes its original."""

    original_format: ClassVar[OriginalFormat]

    @classmethod
    def from_original(
        cls, state_dict_or_path: Tensors | str | os.PathLike, original_arguments: Mapping, **options: object
    ) -> Self:
        """An original program's module with its weights, in evaluation mode.

        Args:
            state_dict_or_path: its state dict (also inside the container of its releases, such as `{"generator": ...}`,
                and with weight norms of either version of torch or without), or the path of a safetensors or
                `torch.save` file of it.
            original_arguments: of the original's constructor, by its names; what is absent has its default. All that
                change numbers are known, see docs/weights.md.
            options: what the original's arguments do not tell, where there is such: `mel` (contract of the mels, as
                `MelConfig.to_dict()`), `codebooks` (of the codec that a token model was trained on), `nyquist`.

        Raises:
            FileNotFoundError: the path does not exist.
            TypeError: an option that this original has not.
            ValueError: an argument is unknown, of another kind or cannot be honored; missing, unexpected, misshapen or
                non-finite tensors, by the original's names; a file that holds code.
        """
        return cls.original_format.load(cls, state_dict_or_path, original_arguments, options)

    @classmethod
    def from_original_arguments(cls, original_arguments: Mapping, **options: object) -> Self:
        """An untrained module of the original's sizes; arguments, options and errors as in `from_original`."""
        return cls(**cls.original_format.configure(original_arguments, {}, **options))

    def to_original_state_dict(self, weight_norm: bool | None = None) -> dict[str, torch.Tensor]:
        """The weights under the original's names, with the tables that it stores: the inverse of `from_original`.

        Args:
            weight_norm: write weight-normed layers as `weight_g` and `weight_v` (`True`) or plain (`False`); `None`: as
                the original's loader wants them.

        Raises:
            ValueError: this module has no counterpart in the original, or the original has no weight norms.
        """
        return self.original_format.write(self, weight_norm)


__all__ = ["OriginalCheckpointMixin", "OriginalFormat"]
