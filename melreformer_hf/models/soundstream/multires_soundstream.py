"""Multiresolution convolution, and upsampling by overlapped wavelets.

Sources: Shi, Wang, Fox, Sequence modeling with multiresolution convolutional memory (arXiv 2305.01638) with its program
thjashin/multires-conv; the upsampler of LumenPallidium/audio_generation.

Deviations: the convolution streams; wavelets are computed, not looked up. The original upsampler sums fixed atoms in a way that amounts to a two-tap interpolation with one free number per channel,
and looks one frame ahead; this one is an overlap-add synthesis with learned frequency, phase and width per atom, and
causal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers import initialization as init

from melreformer_hf.models.soundstream.wavelets_soundstream import wavelet_filters
from melreformer_hf.nn.conv import CausalConv1d, Runner, run_whole, transposed_step
from melreformer_hf.originals.arguments import FLAG, NONE, SHARE, SIZE, TEXT, either, take_arguments
from melreformer_hf.originals.formats import OriginalCheckpointMixin, OriginalFormat
from melreformer_hf.originals.renaming import rename_keys

_ORIGIN = "original MultiresLayer"
_TABLE = [("h0", "low_pass"), ("h1", "high_pass"), ("w", "mixing")]
_NAMES = {
    "d_model": ("channels", SIZE),
    "kernel_size": ("kernel_size", SIZE),
    "depth": ("depth", either(SIZE, NONE)),
    "seq_len": ("max_length", either(SIZE, NONE)),
    "tree_select": ("tree", TEXT),
    "memory_size": ("memory_size", either(SIZE, NONE)),
    "dropout": ("dropout", SHARE),
    "wavelet_init": ("wavelet", either(TEXT, NONE)),
}


def _recall(hidden: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A chunk preceded by what a filter remembers, and what it will remember next (as many samples)."""
    held = torch.cat([memory, hidden], dim=-1)
    return held, held[..., hidden.shape[-1] :].clone()


def _configure(arguments: Mapping, state_dict: Mapping) -> dict:
    fields = take_arguments(arguments, _NAMES, {"indep_res_init": FLAG}, _ORIGIN, ("d_model", "kernel_size"))
    if fields.get("depth") is not None:  # the original lets a depth override the length, a fading tree a size
        fields.pop("max_length", None)
    if fields.get("tree", "fading") == "fading":
        fields.pop("memory_size", None)
    if isinstance(fields.get("wavelet"), str):
        fields.pop("wavelet")  # only initial values, which the checkpoint replaces; any name will do
    return fields


class MultiresConv1d(OriginalCheckpointMixin, nn.Module):
    """Causal depthwise convolution over a tree of dilations: long memory for O(length * depth) operations.

    Two filters per channel, shared by all levels, split the signal into a low and a high part; the low part is split
    again with twice the dilation, `depth` times. The output mixes the high parts of all levels, the last low part and
    the input, then GELU and dropout of channels. Nothing is decimated. A depth of log2(length) sees the whole past.

    Args:
        channels: channels of input and output.
        kernel_size: taps of the two filters, at least 2; 1 tap reaches no past, and needs a `depth`.
        depth: levels; or give `max_length`.
        max_length: samples that the memory has to span; sets the depth.
        tree: `"fading"`: one weight per level, on its newest coefficient. `"uniform"`: `memory_size` weights, dealt
            out from the coarsest level down, each level's to its newest coefficients.
        memory_size: number of weights of a uniform tree, at least 2.
        dropout: of whole channels.
        wavelet: filters to begin with (see `wavelet_filters`), else random ones; they must have `kernel_size` taps.

    Raises:
        ValueError: a value breaks its rule.
    """

    original_format = OriginalFormat(
        _ORIGIN,
        _configure,
        lambda tensors, model: rename_keys(tensors, _TABLE, _ORIGIN),
        lambda tensors, model: rename_keys(tensors, _TABLE, _ORIGIN, reverse=True),
    )

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        depth: int | None = None,
        max_length: int | None = None,
        tree: str = "fading",
        memory_size: int | None = None,
        dropout: float = 0.0,
        wavelet: str | Sequence | None = None,
    ) -> None:
        super().__init__()
        if kernel_size < (2 if depth is None else 1):
            raise ValueError(f"kernel_size must be at least 2, or 1 where depth is given, got {kernel_size}.")
        if (depth is None) == (max_length is None):
            raise ValueError(f"Give either depth or max_length, got {depth} and {max_length}.")
        if tree not in ("fading", "uniform"):
            raise ValueError(f"tree must be 'fading' or 'uniform', got {tree!r}.")
        if (tree == "uniform") != (memory_size is not None) or (memory_size is not None and memory_size < 2):
            raise ValueError(f"memory_size must be at least 2 for a uniform tree, None else; got {memory_size}.")
        if depth is None:
            # The reach of the tree, 1 + (taps - 1)(2^depth - 1) samples, must span max_length.
            depth = math.ceil(math.log2((max_length - 1) / (kernel_size - 1) + 1))
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}.")
        self.channels, self.kernel_size, self.depth, self.tree = channels, kernel_size, depth, tree
        self.num_weights = depth + 1 if memory_size is None else memory_size
        self.low_pass = nn.Parameter(torch.empty(channels, 1, kernel_size))
        self.high_pass = nn.Parameter(torch.empty(channels, 1, kernel_size))
        self.mixing = nn.Parameter(torch.empty(channels, self.num_weights + 1))
        self.activation = nn.GELU()
        self.dropout = nn.Dropout1d(dropout)
        self._wavelet = None if wavelet is None else wavelet_filters(wavelet)
        if self._wavelet is not None and self._wavelet[0].numel() != kernel_size:
            taps = self._wavelet[0].numel()
            raise ValueError(f"kernel_size must be {taps}, the number of the wavelet's taps, got {kernel_size}.")
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform values of the original's variance; the wavelet's filters where one is given."""
        for position, taps in enumerate((self.low_pass, self.high_pass)):
            if self._wavelet is None:
                init.uniform_(taps, -(self.kernel_size**-0.5), self.kernel_size**-0.5)
            else:
                init.copy_(taps, self._wavelet[position].expand_as(taps))
        bound = (1.0 / (self.num_weights + 1)) ** 0.5
        init.uniform_(self.mixing, -bound, bound)

    @property
    def receptive_field(self) -> int:
        """Samples, the newest included, that the splitting filters see."""
        return 1 + (self.kernel_size - 1) * (2**self.depth - 1)

    def _weights_per_level(self) -> list[int]:
        """Number of weights of each level's high part, finest first. The last low part has one more."""
        if self.tree == "fading":
            return [1] * self.depth
        # From w coefficients of a level follow 2 (w - 1) + taps of the finer one; what does not fit any more gets no weight.
        counts, left, wanted = [], self.num_weights - 1, 1
        for _ in range(self.depth):
            counts.append(min(wanted, left))
            left -= counts[-1]
            wanted = 2 * (wanted - 1) + self.kernel_size
        return counts[::-1]

    def _begin(self, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Memories at the start of a stream: for every level those of the splitting and the mixing filter."""
        sizes = []
        for level, count in enumerate(self._weights_per_level()):
            # Samples before a chunk that a dilated filter reaches back to, first of the splitting, then of the mixing.
            sizes += [(self.kernel_size - 1) * 2**level, max(0, count - 1) * 2 ** (level + 1)]
        return tuple(hidden.new_zeros(*hidden.shape[:2], size) for size in sizes)

    def mix(self, hidden: torch.Tensor, memory: Sequence[torch.Tensor]) -> tuple[torch.Tensor, tuple]:
        """The tree without its activation: (batch, channels, sample) of the same shape, and the new memories."""
        if hidden.ndim != 3 or hidden.shape[1] != self.channels:
            raise ValueError(f"hidden must be (batch, {self.channels}, sample), got {tuple(hidden.shape)}.")
        # (channel, 1, tap) twice -> (2 channel, 1, tap), low and high beside each other: one grouped convolution makes
        # both.
        filters = torch.cat([self.low_pass, self.high_pass], dim=1).reshape(2 * self.channels, 1, -1)
        mixed = hidden * self.mixing[:, -1:]
        low, after = hidden, []
        position = 1 + sum(self._weights_per_level())
        for level, count in enumerate(self._weights_per_level()):
            held, next_memory = _recall(low, memory[2 * level])
            after.append(next_memory)
            parts = nn.functional.conv1d(held, filters, dilation=2**level, groups=self.channels)
            # (batch, 2 channel, sample) -> two of (batch, channel, sample)
            low, high = parts.unflatten(1, (self.channels, 2)).unbind(2)
            position -= count
            held, next_memory = _recall(high, memory[2 * level + 1])
            after.append(next_memory)
            if count == 1:
                mixed = mixed + high * self.mixing[:, position, None]
            elif count > 1:
                # The first weight belongs to the newest coefficient, the last tap of a convolution to the newest
                # sample.
                newest_last = self.mixing[:, None, position : position + count].flip(-1)
                mixed = mixed + nn.functional.conv1d(
                    held, newest_last, dilation=2 ** (level + 1), groups=self.channels
                )
        return mixed + low * self.mixing[:, :1], tuple(after)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, channels, sample) -> the same shape."""
        return self.dropout(self.activation(self.mix(hidden, self._begin(hidden))[0]))

    def step(self, hidden: torch.Tensor, memory: Sequence[torch.Tensor] | None) -> tuple[torch.Tensor, tuple]:
        """One chunk of a stream.

        Args:
            hidden: (batch, channels, any number of samples, also none).
            memory: what the step before returned; `None` begins a stream.

        Returns:
            The same shape, and the memory for the next step: as many samples per channel as the tree sees, copied by
            every step, so that chunks should not be much shorter than that.
        """
        memory = self._begin(hidden) if memory is None else memory
        if hidden.shape[-1] == 0:
            return hidden, tuple(memory)
        mixed, memory = self.mix(hidden, memory)
        return self.dropout(self.activation(mixed)), memory


class WaveletSynthesis(nn.Module):
    """Overlap-add of Morlet atoms: every (channel, frame) scales one atom that begins `rate` samples after the last.

    The atom of a channel is `cos(2 pi f t + phase) * exp(-t^2 / (2 width^2))`, t in frames from its middle, scaled so
    that white noise keeps its power. It lies wholly after its frame's beginning, so that the synthesis is causal.

    Args:
        channels: atoms.
        rate: samples per frame.
        num_frames: length of an atom in frames.
    """

    def __init__(self, channels: int, rate: int, num_frames: int = 4) -> None:
        super().__init__()
        if channels < 1 or rate < 1 or num_frames < 1:
            raise ValueError(f"channels, rate and num_frames must be positive, got {channels}, {rate}, {num_frames}.")
        self.channels, self.rate, self.num_frames = channels, rate, num_frames
        self.frequency = nn.Parameter(torch.empty(channels))
        self.phase = nn.Parameter(torch.empty(channels))
        self.log_width = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Pairs of cosine and sine from zero up to half a cycle per sample; widths that fit an atom's length."""
        pairs = (self.channels + 1) // 2
        steps = torch.arange(self.channels, device=self.frequency.device)
        # Cosine and sine of equal frequency span every phase, so that a frame can place its waves freely.
        init.copy_(self.frequency, steps // 2 * (self.rate / 2 / pairs))
        init.copy_(self.phase, steps % 2 * (-math.pi / 2) + math.pi / 4)
        init.constant_(self.log_width, math.log(self.num_frames / 6))

    def atoms(self) -> torch.Tensor:
        """(channels, num_frames * rate)."""
        count = self.num_frames * self.rate
        # In float32 also in half precision: an angle of many turns would keep no digit of its phase.
        time = torch.arange(count, device=self.phase.device, dtype=torch.float32)
        time = (time - (count - 1) / 2) / self.rate
        angle = 2 * math.pi * self.frequency.float()[:, None] * time + self.phase.float()[:, None]
        envelope = torch.exp(-0.5 * (time / self.log_width.float().exp()[:, None]).square())
        atoms = angle.cos() * envelope
        # Energy `rate` per atom: one atom begins per `rate` samples, so that white amplitudes give white noise of power
        # one.
        atoms = atoms * (self.rate**0.5 / atoms.norm(dim=-1, keepdim=True).clamp(min=1e-8))
        return atoms.to(self.phase.dtype)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, channels, frame) -> (batch, channels, frame * rate)."""
        return self.step(hidden, None)[0]

    def step(self, hidden: torch.Tensor, memory: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """One chunk of a stream; see `melreformer_hf.nn.conv.CausalConvTranspose1d.step`."""
        return transposed_step(hidden, memory, self.atoms().unsqueeze(1), None, self.rate, self.channels)


class WaveletUpsampler(nn.Module):
    """Upsampling by an integer rate through wavelets: convolution to amplitudes, overlap-add synthesis, convolution.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        rate: output samples per input frame.
        num_atoms: wavelets; `None` is twice the output channels.
        kernel_size: taps of the first convolution.
        num_frames: length of a wavelet in input frames.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rate: int,
        num_atoms: int | None = None,
        kernel_size: int = 3,
        num_frames: int = 4,
    ) -> None:
        super().__init__()
        num_atoms = 2 * out_channels if num_atoms is None else num_atoms
        self.analysis = CausalConv1d(in_channels, num_atoms, kernel_size)
        self.synthesis = WaveletSynthesis(num_atoms, rate, num_frames)
        self.output_conv = CausalConv1d(num_atoms, out_channels, 3)

    def forward(self, hidden: torch.Tensor, run: Runner = run_whole) -> torch.Tensor:
        """(batch, in_channels, frame) -> (batch, out_channels, frame * rate)."""
        return run(self.output_conv, run(self.synthesis, run(self.analysis, hidden)))


__all__ = [
    "MultiresConv1d",
    "WaveletSynthesis",
    "WaveletUpsampler",
]
