"""StyleGAN2's losses by hand, their second-order gradients, and the discriminator that is told durations."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from testing_utils import assert_error

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.models.idea_stylegan2.configuration_idea_stylegan2 import IdeaStyleGan2Config
from melreformer_hf.models.idea_stylegan2.modeling_idea_stylegan2 import IdeaStyleGan2Model
from melreformer_hf.training.discriminators.stylegan2 import StyleGan2Discriminator, batch_spread
from melreformer_hf.training.losses.stylegan2 import (
    logistic_discriminator_loss,
    nonsaturating_generator_loss,
    path_length_penalty,
    path_lengths,
    r1_penalty,
)

MEL = MelConfig.preset("hifigan", num_mel_bins=8, fmax=None).to_dict()
SIZES = {"mel": MEL, "num_columns": 16, "style_size": 8, "num_mapping_layers": 2, "channels": (8, 6, 4)}


def tiny_pair(**overrides) -> tuple[IdeaStyleGan2Model, StyleGan2Discriminator]:
    torch.manual_seed(0)
    config = IdeaStyleGan2Config(**{**SIZES, **overrides})
    return IdeaStyleGan2Model(config), StyleGan2Discriminator.for_generator(config)


def numbers(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_logistic_losses_by_hand():
    real, fake = torch.tensor([[0.0], [2.0]]), torch.tensor([[-1.0], [0.0]])
    expected = (math.log(2) + math.log1p(math.exp(-2))) / 2 + (math.log1p(math.exp(-1)) + math.log(2)) / 2
    assert logistic_discriminator_loss(real, fake).item() == pytest.approx(expected)
    assert nonsaturating_generator_loss(fake).item() == pytest.approx((math.log1p(math.e) + math.log(2)) / 2)


def test_r1_by_hand_and_its_gradient():
    weight = torch.tensor([1.0, -2.0], requires_grad=True)
    pictures, durations = numbers(3, 2).requires_grad_(), numbers(3, seed=2).requires_grad_()
    logits = (pictures * weight).sum(1, keepdim=True) + 3 * durations[:, None]
    assert r1_penalty(logits, pictures).item() == pytest.approx(5.0)
    both = r1_penalty(logits, [pictures, durations])
    assert both.item() == pytest.approx(14.0)
    both.backward()
    torch.testing.assert_close(weight.grad, 2 * weight.detach())
    with pytest.raises(ValueError) as error:
        r1_penalty(logits, [pictures, durations[:2]])
    assert_error(error, "inputs[1]", "batch of 3", "got 2")


def test_path_lengths_by_hand():
    matrix = numbers(2 * 12, 10, seed=3)
    styles, noise = numbers(4, 2, 5, seed=4).requires_grad_(), numbers(4, 2, 3, 4, seed=5)
    pictures = (styles.reshape(4, 10) @ matrix.T).reshape(4, 2, 3, 4)
    gradient = (noise.reshape(4, 24) @ matrix).reshape(4, 2, 5) / math.sqrt(12)
    expected = gradient.square().sum(2).mean(1).sqrt()
    lengths = path_lengths(pictures, styles, noise)
    torch.testing.assert_close(lengths, expected)
    penalty, mean = path_length_penalty(lengths, 0.5, decay=0.1)
    assert mean.item() == pytest.approx(0.45 + 0.1 * expected.mean().item(), rel=1e-5)
    assert penalty.item() == pytest.approx((expected - mean).square().mean().item(), rel=1e-5)
    assert not mean.requires_grad
    with pytest.raises(ValueError, match="noise must have the pictures' shape"):
        path_lengths(pictures, styles, noise[:1])


def test_penalties_reach_every_weight_they_depend_on():
    model, judge = tiny_pair()
    latents = numbers(4, 8)
    output = model.train()(latents)
    penalty, _ = path_length_penalty(path_lengths(output.sample, output.styles, numbers(4, 1, 8, 16)), 0.0)
    penalty.backward()
    additive = [name for name, _ in model.named_parameters() if name.startswith("duration") or "picture.bias" in name]
    for name, parameter in model.named_parameters():
        if name not in additive:
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    pictures, durations = numbers(4, 1, 8, 16, seed=2).requires_grad_(), numbers(4, seed=3).requires_grad_()
    r1_penalty(judge(pictures, durations), [pictures, durations]).backward()
    for name, parameter in judge.named_parameters():
        if name not in ("output_linear.bias",):
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert judge.input_conv.weight.grad[:, 1].any(), "the duration's plane is not penalised"


def test_second_order_gradients_are_right():
    model, judge = tiny_pair(channels=(4, 3))
    judge.double()
    pictures = numbers(2, 1, 8, 16).double().requires_grad_()
    durations = numbers(2, seed=2).double().requires_grad_()
    weight = judge.blocks[0].conv2.weight

    def penalty() -> torch.Tensor:
        return r1_penalty(judge(pictures, durations), [pictures, durations])

    (gradient,) = torch.autograd.grad(penalty(), weight)
    step = torch.zeros_like(weight)
    step[0, 1, 2, 0] = 1e-5
    with torch.no_grad():
        weight += step
    above = penalty().item()
    with torch.no_grad():
        weight -= 2 * step
    assert (above - penalty().item()) / 2e-5 == pytest.approx(gradient[0, 1, 2, 0].item(), rel=1e-4)


def test_spread_of_the_batch():
    values = numbers(6, 2, 3)
    together = batch_spread(values, 3)
    members = [(values[[row, row + 2, row + 4]].var(0, unbiased=False) + 1e-8).sqrt().mean() for row in range(2)]
    torch.testing.assert_close(together, torch.stack(members).repeat(3))
    assert batch_spread(torch.ones(4), 4).tolist() == pytest.approx([1e-4] * 4)
    assert batch_spread(values[:5], 4).tolist() == pytest.approx([1e-4] * 5), "only 1 and 5 divide 5"
    torch.testing.assert_close(batch_spread(values, 4), batch_spread(values, 3))


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_stays_close_and_has_penalties(autocast):
    _, judge = tiny_pair()
    pictures, durations = numbers(4, 1, 8, 16), numbers(4, seed=2)
    expected = judge(pictures, durations)
    if not autocast:
        judge, pictures = judge.bfloat16(), pictures.bfloat16()
    pictures.requires_grad_()
    durations.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = judge(pictures, durations)
    assert (logits.float() - expected).abs().max() < 0.05 * expected.abs().max().clamp(min=1.0)
    r1_penalty(logits.float(), [pictures, durations]).backward()
    assert all(parameter.grad.isfinite().all() for name, parameter in judge.named_parameters() if "output" not in name)


def test_discriminator_sees_whether_the_duration_belongs_to_the_picture():
    """Loud pictures are long: pairs that are exchanged within the batch can be told only by looking at both."""
    _, judge = tiny_pair()
    generator = torch.Generator().manual_seed(5)
    optimizer = torch.optim.Adam(judge.parameters(), lr=0.01, betas=(0.0, 0.99))

    def pairs(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        durations = torch.randn(batch, generator=generator)
        noise = torch.randn(batch, 1, 8, 16, generator=generator)
        return durations[:, None, None, None] + 0.3 * noise, durations

    for _ in range(60):
        pictures, durations = pairs(16)
        loss = logistic_discriminator_loss(judge(pictures, durations), judge(pictures, durations.roll(1)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pictures, durations = pairs(64)
    with torch.no_grad():
        right = (judge(pictures, durations) > 0).float().mean()
        wrong = (judge(pictures, durations.roll(1)) < 0).float().mean()
    assert (right + wrong) / 2 > 0.75, (right, wrong)


def test_generator_learns_durations_and_brightness_from_the_discriminator():
    model, judge = tiny_pair(log2_frames_mean=10.0, log2_frames_std=1.0)
    model.train()
    generator = torch.Generator().manual_seed(6)
    options = {"lr": 0.01, "betas": (0.0, 0.99)}
    of_model, of_judge = (torch.optim.Adam(m.parameters(), **options) for m in (model, judge))
    for _ in range(40):
        latents = torch.randn(8, 8, generator=generator)
        real_pictures = (2 + 0.1 * torch.randn(8, 1, 8, 16, generator=generator)).requires_grad_()
        real_durations = (1.5 + 0.2 * torch.randn(8, generator=generator)).requires_grad_()
        fake = model(latents)
        durations = model.normalize_duration(fake.log2_num_frames)
        real_logits = judge(real_pictures, real_durations)
        loss = logistic_discriminator_loss(real_logits, judge(fake.sample.detach(), durations.detach()))
        loss = loss + 0.5 * r1_penalty(real_logits, [real_pictures, real_durations])
        of_judge.zero_grad()
        loss.backward()
        of_judge.step()
        of_model.zero_grad()
        nonsaturating_generator_loss(judge(fake.sample, durations)).backward()
        of_model.step()
    with torch.no_grad():
        fake = model.eval()(numbers(32, 8, seed=9))
    assert fake.log2_num_frames.mean().item() > 10.4
    assert fake.sample.mean().item() > 0.5


def original_discriminator() -> tuple[dict, dict]:
    arguments = {"size": 8, "channels": {"4": 6, "8": 4}}
    torch.manual_seed(0)
    return StyleGan2Discriminator.from_original_arguments(arguments).to_original_state_dict(), arguments


def test_original_checkpoints(tmp_path):
    weights, arguments = original_discriminator()
    torch.save({"d": weights}, tmp_path / "d.pt")
    loaded = StyleGan2Discriminator.from_original(tmp_path / "d.pt", arguments)
    for key, value in loaded.to_original_state_dict().items():
        torch.testing.assert_close(value, weights[key], rtol=0, atol=0)
    for change, pattern in [
        ({"convs.1.skip.0.kernel": torch.ones(4, 4)}, "convs.1.skip.0.kernel"),
        ({"surprise": torch.ones(1)}, "unexpected key 'surprise'"),
        ({"final_conv.1.bias": torch.ones(3)}, r"final_conv.1.bias.*\(3,\).*\(6,\)"),
    ]:
        with pytest.raises(ValueError, match=pattern):
            StyleGan2Discriminator.from_original({**weights, **change}, arguments)
    del weights["final_linear.1.bias"]
    with pytest.raises(ValueError, match="missing key 'final_linear.1.bias'"):
        StyleGan2Discriminator.from_original(weights, arguments)
    with pytest.raises(ValueError, match="no argument 'sise'"):
        StyleGan2Discriminator.from_original(weights, {"sise": 8})
    (tmp_path / "code.pt").write_bytes(pickle.dumps({"d": print}))
    with pytest.raises(ValueError, match="refused"):
        StyleGan2Discriminator.from_original(tmp_path / "code.pt", arguments)


@pytest.mark.parametrize(("size", "count"), [(128, 28_389_121), (256, 28_864_129)])
def test_published_parameter_counts(size, count):
    with torch.device("meta"):
        judge = StyleGan2Discriminator.from_original_arguments({"size": size})
    assert sum(parameter.numel() for parameter in judge.parameters()) == count


def test_errors():
    _, judge = tiny_pair()
    pictures = torch.zeros(2, 1, 8, 16)
    for durations in (None, torch.zeros(3), torch.zeros(2, 1)):
        with pytest.raises(ValueError, match="durations must be"):
            judge(pictures, durations)
    with pytest.raises(ValueError, match=r"\(batch, 1, 8, 16\), got \(2, 1, 16, 8\)"):
        judge(pictures.transpose(2, 3), torch.zeros(2))
    _, silent = tiny_pair(predict_duration=False)
    with pytest.raises(ValueError, match="use_duration=False"):
        silent(pictures, torch.zeros(2))
    with pytest.raises(ValueError, match="knows no durations"):
        judge.to_original_state_dict()
    for shape in ((8, 18), (2, 16)):
        with pytest.raises(ValueError, match="multiples of 4"):
            StyleGan2Discriminator(shape, (8, 6, 4))
    with pytest.raises(ValueError, match="group_size"):
        StyleGan2Discriminator((8, 16), (8, 6, 4), group_size=0)
