"""Layers of the frame transformer, on tensors (batch, channel, feature, frame).

A *feature* is a frequency, or what a level of the U-Net makes of it; a *map* is a channel that a transformer works on.
Each map attends to itself alone, from frame to frame; all of its features at one frame are one token.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import conv2d, gelu, interpolate, layer_norm, pad

from melreformer_hf.nn.attention import attend
from melreformer_hf.nn.positions import rotary_angles

# Fused attention kernels of accelerators want head sizes that are multiples of this.
_HEAD_MULTIPLE = 8
_ROTARY_BASE = 10000.0


def squared_relu(hidden: torch.Tensor) -> torch.Tensor:
    """`max(x, 0)^2` (So et al., Primer, arXiv 2109.08668), any shape."""
    return torch.relu(hidden).square()


def rotate_pairs(values: torch.Tensor, positions: torch.Tensor, num_turned: int | None = None) -> torch.Tensor:
    """Rotary position codes on neighboring pairs of features (2 i, 2 i + 1).

    Args:
        values: (..., frame, head_dim).
        positions: (frame,) real numbers.
        num_turned: the first features that are turned, without the last of an odd number; `None` is all of them.
    """
    num_turned = values.shape[-1] if num_turned is None else num_turned
    paired = num_turned // 2 * 2
    if not paired:
        return values
    # Frequencies are base ** (-2 i / num_turned) also where num_turned is odd.
    cosine, sine = rotary_angles(positions, paired, _ROTARY_BASE ** (paired / num_turned))
    cosine, sine = cosine.to(values.dtype), sine.to(values.dtype)
    even, odd = values[..., 0:paired:2], values[..., 1:paired:2]
    turned = torch.stack((even * cosine - odd * sine, odd * cosine + even * sine), dim=-1).flatten(-2)
    return turned if paired == values.shape[-1] else torch.cat((turned, values[..., paired:]), dim=-1)


def padded_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    head_multiple: int = 1,
) -> torch.Tensor:
    """Attention that holds no frame x frame tensor, whatever the head size.

    Args:
        module: the calling layer, which names the implementation.
        query: (row, head, frame, head_dim).
        key: (row, head, memory frame, head_dim).
        value: the shape of `key`.
        scale: factor of the scores.
        head_multiple: head sizes are filled up to multiples of this with zeros, which change nothing.

    Returns:
        (row, frame, head, head_dim).
    """
    size = query.shape[-1]
    missing = -size % head_multiple
    if missing:
        query, key, value = (pad(part, (0, missing)) for part in (query, key, value))
    # The fused kernels refuse features that do not lie side by side, and torch would silently hold all scores instead.
    query, key, value = (part.contiguous() for part in (query, key, value))
    return attend(module, query, key, value, scale=scale)[0][..., :size]


class MultichannelLinear(nn.Module):
    """A linear layer over the features of each channel (position-wise), then one over the channels (depth-wise).

    Either part is there where it is asked for or where sizes change.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        in_features: features of the input.
        out_features: features of the output.
        positionwise: transform the features even if their number stays.
        depthwise: mix the channels even if their number stays.
        shared: one position-wise matrix for all channels, instead of one each.
        bias: whether both parts have one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        in_features: int,
        out_features: int,
        positionwise: bool = True,
        depthwise: bool = False,
        shared: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.weight_pw = self.weight_dw = self.bias_pw = self.bias_dw = None
        if positionwise or in_features != out_features:
            rows = 1 if shared else in_channels
            self.weight_pw = nn.Parameter(torch.empty(rows, out_features, in_features))
            self.bias_pw = nn.Parameter(torch.empty(rows, out_features, 1)) if bias else None
        if depthwise or in_channels != out_channels:
            self.weight_dw = nn.Parameter(torch.empty(out_channels, in_channels))
            self.bias_dw = nn.Parameter(torch.empty(out_channels, 1, 1)) if bias else None
        for weight, offset in ((self.weight_pw, self.bias_pw), (self.weight_dw, self.bias_dw)):
            for parameter in (weight, offset):
                if parameter is not None:
                    bound = weight.shape[-1] ** -0.5
                    nn.init.uniform_(parameter, -bound, bound)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, in_channels, in_features, frame) -> (batch, out_channels, out_features, frame)."""
        if self.weight_pw is not None:
            # A broadcast matmul would copy the weights for every row of the batch.
            if self.weight_pw.shape[0] == 1:
                hidden = torch.einsum("gf,bcft->bcgt", self.weight_pw[0], hidden)
            else:
                hidden = torch.einsum("cgf,bcft->bcgt", self.weight_pw, hidden)
            hidden = hidden if self.bias_pw is None else hidden + self.bias_pw
        if self.weight_dw is not None:
            # A 1 x 1 convolution is a linear layer over the channels.
            hidden = conv2d(hidden, self.weight_dw[:, :, None, None])
            hidden = hidden if self.bias_dw is None else hidden + self.bias_dw
        return hidden


class FrameNorm(nn.Module):
    """Layer norm over the features of each channel at each frame.

    Args:
        channels: channels, each with its own gains and offsets; `None` shares them.
        features: features.
    """

    def __init__(self, channels: int | None, features: int) -> None:
        super().__init__()
        shape = (features,) if channels is None else (channels, 1, features)
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, channel, feature, frame) -> the same shape."""
        # Features last, normalized by the kernel without gains: these differ from channel to channel.
        normed = layer_norm(hidden.transpose(2, 3), self.weight.shape[-1:])
        return torch.addcmul(self.bias, normed, self.weight).transpose(2, 3)


class JointFrameNorm(nn.Module):
    """Layer norm over all channels and features at each frame, with a gain and an offset for each.

    Args:
        channels: channels.
        features: features.
    """

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, features))
        self.bias = nn.Parameter(torch.zeros(channels, features))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, channel, feature, frame) -> the same shape."""
        # (batch, frame, channel, feature): one mean over both last axes.
        normed = layer_norm(hidden.permute(0, 3, 1, 2), self.weight.shape, self.weight, self.bias)
        return normed.permute(0, 2, 3, 1)


class FrameProjection(nn.Module):
    """Queries, keys or values: a linear layer over the features, then a depth-wise convolution over the frames.

    Args:
        channels: maps.
        features: features.
        kernel_size: frames, odd; 1 leaves the convolution out.
        shared: one set of weights for all maps, whose convolution then has one kernel per feature instead of per map.
    """

    def __init__(self, channels: int, features: int, kernel_size: int, shared: bool) -> None:
        super().__init__()
        self.linear = MultichannelLinear(channels, channels, features, features, shared=shared)
        self.shared = shared
        self.conv = None
        if kernel_size > 1:
            groups = features if shared else channels
            self.conv = nn.Conv2d(groups, groups, (1, kernel_size), padding=(0, kernel_size // 2), groups=groups)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, map, feature, frame) -> the same shape."""
        hidden = self.linear(hidden)
        if self.conv is None:
            return hidden
        # Shared weights convolve features as channels, so that every map gets the same kernels.
        return self.conv(hidden.transpose(1, 2)).transpose(1, 2) if self.shared else self.conv(hidden)


class MultichannelAttention(nn.Module):
    """Multi-head attention from frame to frame, in parallel in every map, with rotary positions.

    Scores are divided by the root of the number of features, not of a head's share of them, as in the original.

    Args:
        channels: maps.
        features: features of a map.
        num_heads: heads; they share the features out.
        kernel_size: frames of the projections' convolution, odd; 1 leaves it out.
        shared: one set of weights for all maps.
        rotary_factor: share of a head's features that rotary positions turn.
    """

    attn_implementation = "sdpa"

    def __init__(
        self,
        channels: int,
        features: int,
        num_heads: int,
        kernel_size: int = 3,
        shared: bool = False,
        rotary_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        # Rounded down, as the original does, also to an odd number, whose last feature stays.
        self.num_turned = int(features // num_heads * rotary_factor)
        self.scale = features**-0.5
        self.q_proj = FrameProjection(channels, features, kernel_size, shared)
        self.k_proj = FrameProjection(channels, features, kernel_size, shared)
        self.v_proj = FrameProjection(channels, features, kernel_size, shared)
        self.out_proj = MultichannelLinear(channels, channels, features, features, shared=shared)

    def _heads(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, map, feature, frame) -> (batch * map, head, frame, head_dim)."""
        # Maps become rows of the batch: none attends to another.
        return hidden.flatten(0, 1).unflatten(1, (self.num_heads, -1)).transpose(2, 3)

    def forward(self, hidden: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
        """Attend.

        Args:
            hidden: (batch, map, feature, frame).
            memory: (batch, map, feature, memory frame) what is attended to; `None` is `hidden`.

        Returns:
            the shape of `hidden`.
        """
        memory = hidden if memory is None else memory
        positions = torch.arange(max(hidden.shape[-1], memory.shape[-1]), device=hidden.device)
        query = rotate_pairs(self._heads(self.q_proj(hidden)), positions[: hidden.shape[-1]], self.num_turned)
        key = rotate_pairs(self._heads(self.k_proj(memory)), positions[: memory.shape[-1]], self.num_turned)
        multiple = 1 if hidden.device.type == "cpu" else _HEAD_MULTIPLE
        attended = padded_attention(self, query, key, self._heads(self.v_proj(memory)), self.scale, multiple)
        # (batch * map, frame, head, head_dim) -> (batch, map, feature, frame); a feature is (head, head_dim) joined.
        return self.out_proj(attended.flatten(2).transpose(1, 2).reshape(hidden.shape))


class MapTransformer(nn.Module):
    """One pre-norm transformer layer on a level's attention maps: self-attention, attention to a skip, feed-forward.

    Args:
        in_channels: channels of the level.
        num_maps: maps, squeezed from the channels by a 1 x 1 convolution; `None` works on the channels themselves.
        features: features of a map.
        num_heads: heads of a map.
        intermediate_size: feed-forward width.
        skip_channels: channels of the skip connection that the decoder's transformers attend to; `None` for none.
        mixes_maps: whether the first feed-forward layer mixes the maps.
        kernel_size: frames of the attention's convolutions.
        shared: one set of weights for all maps.
        rotary_factor: share of a head's features that rotary positions turn.
        dropout: on what attention and feed-forward layer add.
    """

    def __init__(
        self,
        in_channels: int,
        num_maps: int | None,
        features: int,
        num_heads: int,
        intermediate_size: int,
        skip_channels: int | None = None,
        mixes_maps: bool = True,
        kernel_size: int = 3,
        shared: bool = False,
        rotary_factor: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        maps = in_channels if num_maps is None else num_maps
        norm_channels = None if shared else maps
        has_skip = skip_channels is not None
        attention = (maps, features, num_heads, kernel_size, shared, rotary_factor)
        self.embed = None if num_maps is None else nn.Conv2d(in_channels, maps, 1)
        self.embed_skip = nn.Conv2d(skip_channels, maps, 1) if has_skip and num_maps is not None else None
        self.attention_norm = FrameNorm(norm_channels, features)
        self.attention = MultichannelAttention(*attention)
        self.skip_norm = FrameNorm(norm_channels, features) if has_skip else None
        self.skip_attention = MultichannelAttention(*attention) if has_skip else None
        self.mlp_norm = FrameNorm(norm_channels, features)
        self.up_proj = MultichannelLinear(maps, maps, features, intermediate_size, depthwise=mixes_maps, shared=shared)
        self.down_proj = MultichannelLinear(maps, maps, intermediate_size, features, shared=shared)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        """Transform.

        Args:
            hidden: (batch, in_channels, feature, frame).
            skip: (batch, skip_channels, feature, frame), in the decoder.

        Returns:
            (batch, map, feature, frame).
        """
        if self.embed is not None:
            hidden = self.embed(hidden)
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden)))
        if self.skip_attention is not None:
            # The decoder's queries look into the encoder's output of the same level.
            memory = skip if self.embed_skip is None else self.embed_skip(skip)
            hidden = hidden + self.dropout(self.skip_attention(self.skip_norm(hidden), memory))
        return hidden + self.dropout(self.down_proj(squared_relu(self.up_proj(self.mlp_norm(hidden)))))


class ConvBlock(nn.Module):
    """Residual block of two convolutions with a squared ReLU between them; the second may halve the features.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        features: features of the input.
        downsample: whether the output has half the features.
        kernel_size: (features, frames), odd.
        expansion: width of the hidden layer over `out_channels`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: int,
        downsample: bool = False,
        kernel_size: tuple[int, int] = (3, 3),
        expansion: int = 1,
    ) -> None:
        super().__init__()
        stride = (2, 1) if downsample else 1
        padding = (kernel_size[0] // 2, kernel_size[1] // 2)
        width = out_channels * expansion
        self.norm = FrameNorm(in_channels, features)
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size, padding=padding, bias=False)
        self.conv2 = nn.Conv2d(width, out_channels, kernel_size, stride=stride, padding=padding, bias=False)
        self.identity = None
        if downsample or in_channels != out_channels:
            self.identity = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, in_channels, feature, frame) -> (batch, out_channels, feature or half of it, frame)."""
        residual = hidden if self.identity is None else self.identity(hidden)
        return residual + self.conv2(squared_relu(self.conv1(self.norm(hidden))))


class PreactivationBlock(nn.Module):
    """Residual block of norm, GELU and convolution, twice; the second convolution may halve the features.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        features: features of the input.
        downsample: whether the output has half the features.
        kernel_size: (features, frames), odd.
        expansion: width of the hidden layer over `out_channels`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: int,
        downsample: bool = False,
        kernel_size: tuple[int, int] = (3, 3),
        expansion: int = 1,
    ) -> None:
        super().__init__()
        stride = (2, 1) if downsample else 1
        padding = (kernel_size[0] // 2, kernel_size[1] // 2)
        width = out_channels * expansion
        self.norm1 = JointFrameNorm(in_channels, features)
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size, padding=padding, bias=False)
        self.norm2 = JointFrameNorm(width, features)
        self.conv2 = nn.Conv2d(width, out_channels, kernel_size, stride=stride, padding=padding, bias=False)
        self.identity = None
        if downsample or in_channels != out_channels:
            self.identity = nn.Conv2d(in_channels, out_channels, 1, stride=stride)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, in_channels, feature, frame) -> (batch, out_channels, feature or half of it, frame)."""
        residual = hidden if self.identity is None else self.identity(hidden)
        change = self.conv1(gelu(self.norm1(hidden)))
        return residual + self.conv2(gelu(self.norm2(change)))


class PositionwiseBlock(nn.Module):
    """Residual block of two multichannel linear layers with a squared ReLU between them.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        in_features: features of the input.
        out_features: features of the output.
        expansion: width of the hidden layer over the larger number of features.
        projects: whether the residual is a multichannel linear layer of the input; else the caller adds it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        in_features: int,
        out_features: int,
        expansion: int = 2,
        projects: bool = True,
    ) -> None:
        super().__init__()
        width = expansion * max(in_features, out_features)
        self.norm = FrameNorm(in_channels, in_features)
        self.linear1 = MultichannelLinear(in_channels, out_channels, in_features, width, depthwise=True)
        self.linear2 = MultichannelLinear(out_channels, out_channels, width, out_features, depthwise=True)
        self.identity = None
        if projects:
            self.identity = MultichannelLinear(in_channels, out_channels, in_features, out_features, depthwise=True)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, in_channels, in_features, frame) -> (batch, out_channels, out_features, frame)."""
        change = self.linear2(squared_relu(self.linear1(self.norm(hidden))))
        return change if self.identity is None else self.identity(hidden) + change


class ConvDecoder(nn.Module):
    """Doubles the features by linear interpolation, then joins the skip connection in a residual block.

    Args:
        block: the residual block, `ConvBlock` or `PreactivationBlock`, of the channels of input and skip connection
            together and of the output's features.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    @staticmethod
    def upsample(hidden: torch.Tensor) -> torch.Tensor:
        """(batch, channel, feature, frame) -> (batch, channel, 2 * feature, frame); the outer features stay."""
        # Features only; frames stay as many as they are.
        return interpolate(hidden, scale_factor=(2, 1), mode="bilinear", align_corners=True)

    def forward(self, hidden: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """(batch, channel, feature / 2, frame), skip (batch, channel, feature, frame) -> that of the block."""
        return self.block(torch.cat((self.upsample(hidden), skip), dim=1))


class PositionwiseDecoder(nn.Module):
    """Doubles the features by a `PositionwiseBlock`, then joins the skip connection by a second one.

    Args:
        in_channels: channels of the input.
        skip_channels: channels of the skip connection.
        out_channels: channels of the output.
        features: features of the output.
        expansion: width of the hidden layers over `features`.
    """

    def __init__(
        self, in_channels: int, skip_channels: int, out_channels: int, features: int, expansion: int = 2
    ) -> None:
        super().__init__()
        self.resample = PositionwiseBlock(in_channels, out_channels, features // 2, features, expansion)
        self.join = PositionwiseBlock(
            out_channels + skip_channels, out_channels, features, features, expansion, projects=False
        )

    def forward(self, hidden: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """(batch, channel, feature / 2, frame), skip (batch, channel, feature, frame) -> that of `out_channels`."""
        hidden = self.resample(hidden)
        return hidden + self.join(torch.cat((hidden, skip), dim=1))


__all__ = [
    "ConvBlock",
    "ConvDecoder",
    "FrameNorm",
    "FrameProjection",
    "JointFrameNorm",
    "MapTransformer",
    "MultichannelAttention",
    "MultichannelLinear",
    "PositionwiseBlock",
    "PositionwiseDecoder",
    "PreactivationBlock",
    "padded_attention",
    "rotate_pairs",
    "squared_relu",
]
