"""The ear equals its formulas, computed again from its weights."""

from __future__ import annotations

import pytest
import torch
from plain_layers import conv1d, gelu, linear, norm, shake
from torch.nn.functional import conv2d, pad

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.models.note_ear.configuration_note_ear import NoteEarConfig
from melreformer_hf.models.note_ear.modeling_note_ear import NoteEarModel

MEL = MelConfig(sampling_rate=8000, n_fft=128, win_length=128, hop_length=32, num_mel_bins=11).to_dict()


def layer(block, x: torch.Tensor, dilation: int, look_ahead: int) -> torch.Tensor:
    """Four taps, `dilation` steps apart, so many of them in the future; zeros outside."""
    spread = torch.zeros(*block.depthwise.weight.shape[:2], 3 * dilation + 1)
    spread[..., ::dilation] = block.depthwise.weight
    before = (3 - look_ahead) * dilation
    # A long enough end: the plain convolution keeps the length.
    branch = conv1d(spread, block.depthwise.bias, x, before, groups=x.shape[1])
    return x + linear(
        block.down_proj, gelu(linear(block.up_proj, norm(block.norm, branch.transpose(1, 2))))
    ).transpose(1, 2)


@torch.no_grad()
@pytest.mark.parametrize(("fold", "frames", "steps"), [(2, 9, 5), (3, 9, 3), (1, 5, 5)])
def test_what_is_heard(fold, frames, steps):
    config = NoteEarConfig.preset("test", mel=MEL, num_keys=4, fold_size=fold, input_mean=-4.0, input_std=2.0)
    model = shake(NoteEarModel(config))
    mel = torch.randn(2, 11, frames, generator=torch.Generator().manual_seed(1)) * 2 - 5
    filled = pad(mel, (0, steps * fold - frames), value=config.mel_config.floor_value)
    hidden = ((filled + 4) / 2)[:, None]
    # Eleven bands become six, then three.
    assert model.stem.fold.weight.shape == (4, 1, 5, fold + 2) and model.stem.mix.weight.shape == (6, 4, 3, 3)
    hidden = gelu(conv2d(pad(hidden, (1, 1, 2, 2)), model.stem.fold.weight, model.stem.fold.bias, (2, fold)))
    hidden = gelu(conv2d(pad(hidden, (1, 1, 1, 1)), model.stem.mix.weight, model.stem.mix.bias, (2, 1)))
    assert hidden.shape == (2, 6, 3, steps)
    hidden = linear(model.stem.proj, hidden.permute(0, 3, 1, 2).flatten(2)).transpose(1, 2)
    for block, dilation, look_ahead in zip(model.layers, (1, 2), (1, 0), strict=True):
        hidden = layer(block, hidden, dilation, look_ahead)
    hidden = norm(model.norm, hidden.transpose(1, 2))
    heard = linear(model.head, hidden).reshape(2, steps, 4, 4)
    output = model(mel)
    torch.testing.assert_close(output.last_hidden_state, hidden, rtol=1e-4, atol=1e-4)
    made = (output.onset_logits, output.frame_logits, output.offset_logits, output.velocities)
    for index, values in enumerate(made):
        expected = heard[:, :, index]
        expected = 1 / (1 + (-expected).exp()) if index == 3 else expected
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-4)
