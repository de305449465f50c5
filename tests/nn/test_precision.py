"""No float64 where the data is: some accelerators have none. A device that only pretends stands in for them."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram
from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.models.idea_unet.unet_idea import IdeaUNetModel
from melreformer_hf.models.mel_reformer.configuration_mel_reformer import MelReformerConfig
from melreformer_hf.models.mel_reformer.modeling_mel_reformer import MelReformerModel
from melreformer_hf.models.mel_reformer.timing_mel_reformer import column_of, half_frames
from melreformer_hf.nn.positions import rotary_angles
from melreformer_hf.nn.sampling import choose


class NoFloat64(TorchDispatchMode):
    """Fails when an operation makes a float64 tensor on the meta device, as a device without that type would."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for leaf in torch.utils._pytree.tree_leaves(output):
            if isinstance(leaf, torch.Tensor) and leaf.is_meta and leaf.dtype == torch.float64:
                raise AssertionError(f"{function} makes float64 on the device of the data.")
        return output


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(
    "run",
    [
        lambda: rotary_angles(meta(7, dtype=torch.int64), 8),
        lambda: resize_mel(meta(2, 10, 50), 16),
        lambda: column_of(meta(2, 9, dtype=torch.int64), meta(2, dtype=torch.int64), 16),
        lambda: choose(meta(2, 9), do_sample=True, top_k=3, top_p=0.9, generator=torch.Generator().manual_seed(0)),
        lambda: log_mel_spectrogram(meta(2, 4096), MelConfig.preset("hifigan")),
    ],
    ids=["positions", "resizing", "timing", "sampling", "mel"],
)
def test_functions_make_no_float64_beside_their_input(run):
    with NoFloat64():
        run()


def test_the_check_can_fail():
    with NoFloat64(), pytest.raises(AssertionError, match="float64"):
        meta(3).double()


def test_models_make_no_float64_beside_their_input():
    with torch.device("meta"):
        expansion = MelReformerModel(MelReformerConfig.preset("tiny")).eval()
        unet = IdeaUNetModel().eval()
    with NoFloat64(), torch.no_grad():
        encoded = expansion.expansion.encode(meta(1, 128, 256), meta(1, dtype=torch.int64))
        expansion.expansion(encoded, meta(1, 128, 40), meta(1, 128, 8), meta(1, dtype=torch.int64))
        unet(meta(1, 1, 128, 256), torch.tensor([3.0], device="meta"), meta(1))


@pytest.mark.parametrize("start", [0, 1000, 10**6, 10**9])
@pytest.mark.parametrize("base", [10000.0, 31.0])
def test_rotary_angles_are_exact_at_any_position(start, base):
    positions = torch.arange(start, start + 5)
    frequency = base ** (-torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    angles = positions.double()[:, None] * frequency
    cosine, sine = rotary_angles(positions, 16, base)
    # The rates themselves are kept to 2 ** -41 turns.
    atol = 3e-6 if start <= 10**6 else 5e-3
    torch.testing.assert_close(cosine.double(), angles.cos(), rtol=0, atol=atol)
    torch.testing.assert_close(sine.double(), angles.sin(), rtol=0, atol=atol)
    with pytest.raises(ValueError, match="integers"):
        rotary_angles(positions.float(), 16)


@pytest.mark.parametrize("frames", [7, 3000, 1_234_567, 87_654_321])
def test_columns_of_far_frames_are_exact(frames):
    start, columns = torch.tensor([frames - 6]), 256
    expected = (torch.arange(frames - 6, frames).double() + 0.5) * columns / frames - 0.5
    actual = column_of(half_frames(start, 6), torch.tensor([frames]), columns)[0]
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-5)
    shift = column_of(half_frames(torch.tensor([-2]), 3), torch.tensor([frames]), columns)[0]
    torch.testing.assert_close(shift.double(), (torch.arange(-2, 1).double() + 0.5) * columns / frames - 0.5)
