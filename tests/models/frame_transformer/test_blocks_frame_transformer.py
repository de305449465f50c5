"""Attention memory, and what the frame transformer's blocks are equal to."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from melreformer_hf.models.frame_transformer.blocks_frame_transformer import (
    FrameNorm,
    JointFrameNorm,
    MultichannelAttention,
    MultichannelLinear,
    rotate_pairs,
)
from melreformer_hf.models.frame_transformer.configuration_frame_transformer import FrameTransformerConfig
from melreformer_hf.models.frame_transformer.modeling_frame_transformer import FrameTransformerModel

FRAMES = 2048


def peak_bytes(run) -> int:
    """Largest sum of live allocations of torch's CPU allocator during `run`, temporaries of its kernels included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def naive_attention(attention: MultichannelAttention, hidden: torch.Tensor) -> torch.Tensor:
    """The formula with its frame x frame scores written out."""
    positions = torch.arange(hidden.shape[-1])
    query, key, value = (
        attention._heads(project(hidden)) for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    scores = rotate_pairs(query, positions) @ rotate_pairs(key, positions).transpose(-1, -2)
    attended = (scores / hidden.shape[2] ** 0.5).softmax(-1) @ value
    return attention.out_proj(attended.transpose(2, 3).reshape(hidden.shape))


def test_attention_needs_a_quarter_of_the_naive_memory_at_most():
    """Forward and backward at 2048 frames; and no tensor of frames x frames is kept for the backward pass."""
    torch.manual_seed(0)
    attention = MultichannelAttention(1, 16, 2)
    hidden = torch.randn(1, 1, 16, FRAMES, requires_grad=True)
    found, sizes = {}, {"fused": [], "naive": []}

    def step(name, attend):
        def keep(tensor):
            sizes[name].append(tensor.numel())
            return tensor

        attention.zero_grad()
        hidden.grad = None
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = attend(hidden)
        output.square().sum().backward()
        found[name] = (output.detach(), hidden.grad.clone(), attention.q_proj.linear.weight_pw.grad.clone())

    fused = peak_bytes(lambda: step("fused", attention))
    naive = peak_bytes(lambda: step("naive", lambda values: naive_attention(attention, values)))
    assert naive > FRAMES * FRAMES * 4, "the measurement does not see the scores"
    assert fused <= naive / 4
    assert max(sizes["naive"]) >= FRAMES * FRAMES > 16 * max(sizes["fused"])
    for ours, formula in zip(found["fused"], found["naive"], strict=True):
        torch.testing.assert_close(ours, formula, rtol=1e-3, atol=1e-4)


def test_memory_of_the_model_grows_with_the_frames_and_not_with_their_square():
    config = FrameTransformerConfig.preset("tiny", base_channels=2, num_attention_maps=(1, 1, 1))
    model = FrameTransformerModel(config).eval()
    peaks = []
    for frames in (FRAMES // 2, FRAMES):
        mixture = torch.rand(1, 2, config.num_bins, frames)
        with torch.no_grad():
            peaks.append(peak_bytes(lambda mixture=mixture: model(mixture)))
    assert peaks[1] < 2.2 * peaks[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("features", "heads"), [(32, 4), (4, 2), (24, 2)])
def test_the_fused_kernel_accepts_every_head_size(dtype, features, heads):
    attention = MultichannelAttention(2, features, heads).to(dtype)
    hidden = torch.randn(1, 2, features, 9, dtype=dtype)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):  # no other kernel may step in
        assert attention(hidden).isfinite().all()


def test_maps_do_not_see_each_other_and_frames_do():
    torch.manual_seed(0)
    attention = MultichannelAttention(3, 16, 2)
    hidden = torch.randn(1, 3, 16, 12)
    changed = hidden.clone()
    changed[:, 1, :, 5] += 1.0
    with torch.no_grad():
        differs = (attention(hidden) != attention(changed)).any(2)[0]
    assert not differs[0].any() and not differs[2].any()
    assert differs[1].all()


def test_memory_may_have_its_own_length():
    attention = MultichannelAttention(2, 16, 2)
    assert attention(torch.randn(1, 2, 16, 7), torch.randn(1, 2, 16, 11)).shape == (1, 2, 16, 7)


def test_rotary_scores_depend_on_the_distance_alone():
    query, key = torch.randn(2, 1, 8, dtype=torch.float64)
    scores = [
        (rotate_pairs(query, torch.tensor([a])) * rotate_pairs(key, torch.tensor([b]))).sum().item()
        for a, b in ((3, 1), (103, 101), (1003, 1001))
    ]
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-4)
    assert scores[0] != pytest.approx((query * key).sum().item(), abs=1e-3)


def test_rotary_positions_of_some_features():
    values, positions = torch.ones(5, 7), torch.arange(5)
    for turned in (4, 5):
        rotated = rotate_pairs(values, positions, turned)
        assert torch.equal(rotated[:, 4:], torch.ones(5, 3))
        angle = positions * 10000.0 ** (-2 / turned)  # of the second pair
        torch.testing.assert_close(rotated[:, 2], angle.cos() - angle.sin())
        torch.testing.assert_close(rotated[:, 3], angle.cos() + angle.sin())
    assert torch.equal(rotate_pairs(values, positions, 1), values)


def test_multichannel_linear_is_one_linear_layer_per_channel_and_a_mixing():
    torch.manual_seed(0)
    ours = MultichannelLinear(3, 5, 8, 12, depthwise=True)
    hidden = torch.randn(2, 3, 8, 7)
    channels = []
    for channel in range(3):
        linear = nn.Linear(8, 12, bias=False)
        linear.weight.data = ours.weight_pw.data[channel]
        channels.append(linear(hidden[:, channel].transpose(1, 2)).transpose(1, 2))
    expected = torch.einsum("oc,bcft->boft", ours.weight_dw, torch.stack(channels, dim=1))
    torch.testing.assert_close(ours(hidden), expected)
    shared = MultichannelLinear(3, 3, 8, 12, shared=True)
    expected = torch.einsum("gf,bcft->bcgt", shared.weight_pw[0], hidden)
    torch.testing.assert_close(shared(hidden), expected)
    assert MultichannelLinear(3, 3, 8, 8, positionwise=False)(hidden) is hidden


@pytest.mark.parametrize("shared", [False, True])
def test_multichannel_linear_keeps_one_copy_of_its_weights(shared):
    linear = MultichannelLinear(3, 3, 64, 128, shared=shared)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda saved: kept.append(saved.numel()) or saved, lambda saved: saved
    ):
        linear(torch.randn(4, 3, 64, 5, requires_grad=True))
    assert max(kept) == linear.weight_pw.numel()


def test_norms():
    hidden = torch.randn(2, 3, 8, 5) * 4 + 1
    own = FrameNorm(3, 8)(hidden)
    torch.testing.assert_close(own.mean(2), torch.zeros(2, 3, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(FrameNorm(None, 8)(hidden), own)
    joint = JointFrameNorm(3, 8)(hidden)
    torch.testing.assert_close(joint.mean((1, 2)), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(joint.square().mean((1, 2)), torch.ones(2, 5), atol=1e-4, rtol=0)
    assert (joint.mean(2).abs() > 1e-3).any()
