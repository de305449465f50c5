"""STFT, pooled-waveform and patch discriminators: shapes, gradients, learning, checkpoints, errors; the draw; freezing."""

from __future__ import annotations

import pytest
import torch
from borders import check_borders
from testing_utils import assert_error
from training_utils import ADVERSARIAL, VOCODER, context, started

from melreformer_hf.audio.mel import log_mel_spectrogram
from melreformer_hf.nn.conv import apply_weight_norm
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.discriminators.drawing import DiscriminatorDraw
from melreformer_hf.training.discriminators.patch import PatchDiscriminator
from melreformer_hf.training.discriminators.soundstream import PooledWaveformDiscriminator, TwoSidedStftDiscriminator
from melreformer_hf.training.discriminators.stft import MultiScaleStftDiscriminator
from melreformer_hf.training.freezing import freeze
from melreformer_hf.training.losses import (
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    separation_term,
)
from melreformer_hf.training.recipes.vocoder import VocoderRecipe

ARGUMENTS = {
    "stft": {"filters": 4, "in_channels": 1, "n_ffts": [64, 32], "hop_lengths": [16, 8], "win_lengths": [64, 24]},
    "wave": {"channel_sizes": [4, 8, 8], "kernel_sizes": [5, 5, 3], "strides": [1, 2, 1], "groups": [1, 4, 1]},
    "spectrum": {"win_length": 128, "first_channel_size": 2},
    "patch": {"disc_in_channels": 1, "disc_ndf": 4, "disc_num_layers": 2},
}
CLASSES = {
    "stft": MultiScaleStftDiscriminator,
    "wave": PooledWaveformDiscriminator,
    "spectrum": TwoSidedStftDiscriminator,
    "patch": PatchDiscriminator,
}
NAMES = sorted(CLASSES)


def small(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if name == "stft":
        return MultiScaleStftDiscriminator([64, 32], [16, 8], [64, 24], channels=4)
    if name == "wave":
        return PooledWaveformDiscriminator([4, 8], [5, 5, 3], [1, 2, 1], [1, 4, 1])
    return TwoSidedStftDiscriminator(128, 2) if name == "spectrum" else PatchDiscriminator(1, 4, 2)


def pair(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Tones and noise, as waveforms or pictures."""
    generator = torch.Generator().manual_seed(1)
    if name == "patch":
        return torch.sin(0.7 * torch.arange(32.0)).expand(2, 24, 32), torch.randn(2, 24, 32, generator=generator)
    return torch.sin(0.3 * torch.arange(600.0)).repeat(2, 1), torch.randn(2, 600, generator=generator)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients(name):
    model, (_, values) = small(name).eval(), pair(name)
    values.requires_grad_()
    logits, maps = model(values)
    assert len(logits) == len(maps) == {"stft": 2, "wave": 3}.get(name, 1)
    for value, layers in zip(logits, maps, strict=True):
        assert value.ndim == 2 and value.shape[0] == 2
        torch.testing.assert_close(layers[-1].flatten(1), value, rtol=0, atol=0)
    single, _ = model(values[:1])
    for alone, together in zip(single, logits, strict=True):
        torch.testing.assert_close(alone, together[:1], rtol=1e-4, atol=1e-5)
    sum(value.square().mean() for value in logits).backward()
    assert values.grad.isfinite().all() and values.grad.abs().sum() > 0
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", NAMES)
def test_learns_to_tell_tone_from_noise(name):
    model, (real, fake) = small(name), pair(name)
    if name == "stft":
        apply_weight_norm(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(120):
        loss = hinge_discriminator_loss(model(real)[0], model(fake)[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for judged_real, judged_fake in zip(model(real)[0], model(fake)[0], strict=True):
        assert judged_real.mean() > judged_fake.mean() + 0.5


@pytest.mark.parametrize("name", NAMES)
def test_the_generators_loss_leaves_nothing_in_the_discriminator(name):
    """Gradients of a discriminator equal those of its own loss alone, though the generator's loss runs through it."""
    model, (real, fake) = small(name).eval(), pair(name)
    hinge_discriminator_loss(model(real)[0], model(fake)[0]).backward()
    alone = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.zero_grad()
    fake.requires_grad_()
    hinge_discriminator_loss(model(real)[0], model(fake.detach())[0]).backward()
    with freeze(model):
        _, wanted = model(real)
        logits, maps = model(fake)
        (
            hinge_generator_loss(logits) + 100 * feature_matching_loss(wanted, maps, reduction="mean", relative=True)
        ).backward()
    assert fake.grad.abs().sum() > 0
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, alone[key], rtol=0, atol=0, msg=key)
        assert parameter.requires_grad


def test_the_vocoder_recipe_trains_each_side_by_its_own_loss():
    """After both phases of a step the discriminator holds the gradient of its own loss, and that alone."""
    words = [*VOCODER, *ADVERSARIAL, "--dataset", "unused", "--output_dir", "unused", "--max_steps", "1"]
    recipe = VocoderRecipe(TrainingConfig.from_command_line(VocoderRecipe, words))
    torch.manual_seed(0)
    modules, mel = started(recipe), recipe.mel
    waveform = 0.1 * torch.randn(2, 16 * mel.hop_length, generator=torch.Generator().manual_seed(0))
    batch, after = {"waveform": waveform, "mel": log_mel_spectrogram(waveform, mel)}, {}
    for phase in recipe.phases(batch, context(progress=1.0)):
        phase.loss.backward()
        after[phase.module] = {key: value.grad.clone() for key, value in modules["discriminator"].named_parameters()}
    assert list(after) == ["discriminator", "model"]
    for key, gradient in after["discriminator"].items():
        torch.testing.assert_close(after["model"][key], gradient, rtol=0, atol=0, msg=key)
        assert gradient.any(), key
    assert all(parameter.requires_grad for parameter in modules["discriminator"].parameters())


def test_freezing_keeps_what_was_frozen():
    model = small("wave")
    first = next(model.parameters()).requires_grad_(False)
    with pytest.raises(KeyError), freeze(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        raise KeyError
    assert [parameter is first for parameter in model.parameters()] == [
        not parameter.requires_grad for parameter in model.parameters()
    ]


@pytest.mark.parametrize("name", NAMES)
def test_original_checkpoints(name, tmp_path):
    model_class, (_, values) = CLASSES[name], pair(name)
    original = {
        "stft": lambda: small("stft"),
        "wave": lambda: PooledWaveformDiscriminator([4, 8], **kernels),
        "spectrum": lambda: TwoSidedStftDiscriminator(128, 2, slope=1.0),
        "patch": lambda: small("patch"),
    }
    kernels = {key: value for key, value in ARGUMENTS["wave"].items() if key != "channel_sizes"}
    model = original[name]().eval()
    weights = model.to_original_state_dict()
    torch.save(weights, tmp_path / "weights.pt")
    loaded = model_class.from_original(tmp_path / "weights.pt", ARGUMENTS[name]).eval()
    for one, two in zip(loaded(values)[0], model(values)[0], strict=True):
        torch.testing.assert_close(one, two)
    with pytest.raises(ValueError, match="no argument 'fliters'"):
        model_class.from_original(weights, {**ARGUMENTS[name], "fliters": 3})
    surprise = "discriminator.surprise" if name == "patch" else "surprise"
    with pytest.raises(ValueError, match=f"unexpected key {surprise!r}"):
        model_class.from_original({**weights, surprise: torch.zeros(1)}, ARGUMENTS[name])
    key = next(key for key in weights if key.endswith("bias"))
    with pytest.raises(ValueError, match="missing key"):
        model_class.from_original({k: v for k, v in weights.items() if k != key}, ARGUMENTS[name])
    with pytest.raises(ValueError, match="has shape"):
        model_class.from_original({**weights, key: torch.zeros(99)}, ARGUMENTS[name])


def test_a_checkpoint_with_another_window_is_refused():
    weights = small("stft").to_original_state_dict()
    key = "discriminators.0.spec_transform.window"
    with pytest.raises(ValueError) as error:
        MultiScaleStftDiscriminator.from_original({**weights, key: torch.ones(64)}, ARGUMENTS["stft"])
    assert_error(error, key, "other values")


def test_published_sizes():
    with torch.device("meta"):
        counts = [
            sum(parameter.numel() for parameter in model.parameters())
            for model in (PatchDiscriminator(), MultiScaleStftDiscriminator(channels=32))
        ]
    # One resolution of EnCodec's: 3 x 9 kernels 2-32 and three times 32-32, 3 x 3 kernels 32-32 and 32-1.
    one = (2 * 32 * 27 + 32) + 3 * (32 * 32 * 27 + 32) + (32 * 32 * 9 + 32) + (32 * 9 + 1)
    assert counts == [2_763_585, 5 * one]


def test_the_coarsest_scale_says_how_many_samples_it_needs():
    model = small("wave")
    logits, _ = model(torch.zeros(1, model.shortest))
    assert logits[-1].shape == (1, 1)
    with pytest.raises(ValueError) as error:
        model(torch.zeros(1, model.shortest - 1))
    assert_error(error, f"at least {model.shortest} samples", f"(1, {model.shortest - 1})", "longer crops")
    with torch.device("meta"):
        published = PooledWaveformDiscriminator()
    with pytest.raises(ValueError) as error:
        published(torch.zeros(1, 8192))
    assert_error(error, f"at least {published.shortest} samples", "(1, 8192)")


@pytest.mark.parametrize(
    ("arguments", "shortest"),
    [
        ({}, 224),  # eight frames of 32 samples, which three strides leave one of
        ({"n_fft": 512, "hop_length": 8}, 257),  # more than half a transform, or nothing can be mirrored
        ({"strides": ((1, 2), (3, 2)), "widening": (1, 1), "hop_length": 64}, 65),  # a frame is enough
    ],
)
def test_the_shortest_waveforms_for_a_logit(arguments, shortest):
    model = TwoSidedStftDiscriminator(128, 2, **arguments)
    assert model.shortest == shortest and model(torch.zeros(1, shortest))[0][0].shape[0] == 1
    with pytest.raises(ValueError) as error:
        model(torch.zeros(1, shortest - 1))
    assert_error(error, f"at least {shortest} samples", f"(1, {shortest - 1})")


def test_the_smallest_pictures_and_shortest_waveforms_of_the_others():
    assert small("patch").eval()(torch.zeros(1, 12, 12))[0][0].shape == (1, 1)
    for shape in ((1, 11, 12), (1, 12, 11)):
        with pytest.raises(ValueError, match="at least 12 rows and columns"):
            small("patch")(torch.zeros(shape))
    assert len(small("stft")(torch.zeros(1, 64))[0]) == 2


def test_patches_widen_up_to_eight_times():
    convs = [layer for layer in PatchDiscriminator(2, 4, 5).main if isinstance(layer, torch.nn.Conv2d)]
    assert [conv.in_channels for conv in convs] == [2, 4, 8, 16, 32, 32, 32]
    assert [conv.out_channels for conv in convs] == [4, 8, 16, 32, 32, 32, 1]
    assert [conv.stride for conv in convs] == [(2, 2)] * 5 + [(1, 1)] * 2
    assert {(conv.kernel_size, conv.padding) for conv in convs} == {((4, 4), (1, 1))}
    assert [conv.bias is None for conv in convs] == [False, *[True] * 5, False]


def test_borders_of_sizes():
    lengths = {"n_ffts": [64], "hop_lengths": [1], "win_lengths": [1]}
    inside = {"win_length": (lengths, {**lengths, "win_lengths": [64]})}
    outside = {"win_length": ({**lengths, "win_lengths": [0]}, {**lengths, "win_lengths": [65]})}
    outside["hop_length"] = ({**lengths, "hop_lengths": [0]},)
    check_borders(MultiScaleStftDiscriminator, inside, outside, channels=1)
    names = ("in_channels", "base_channels", "num_layers")
    check_borders(PatchDiscriminator, dict.fromkeys(names, (1,)), dict.fromkeys(names, (0,)), base_channels=1)
    inside = {"win_length": (128, 255), "n_fft": (128,), "hop_length": (1,)}
    outside = {"win_length": (127,), "n_fft": (127,), "hop_length": (0,)}
    check_borders(TwoSidedStftDiscriminator, inside, outside, **{"win_length": 128, "channels": 1})
    inside = {"decay": (0.0, 0.99), "temperature": (1e-3,)}
    outside = {"decay": (-0.01, 1.0), "temperature": (0.0,)}
    check_borders(DiscriminatorDraw, inside, outside, names=["a"])
    assert DiscriminatorDraw(["a", "b", "c"]).num_quantizers("b", 2) == 1
    wave = {"channels": [2], "kernel_sizes": [3, 3], "strides": [1, 1], "groups": [1, 1]}
    inside = {"scales": ((1,), (3, 1))}
    check_borders(PooledWaveformDiscriminator, inside, {"scales": ((), (1, 0))}, **wave)


def test_stereo():
    model = MultiScaleStftDiscriminator([64], [16], [64], channels=2, num_audio_channels=2)
    assert model(torch.zeros(3, 2, 200))[0][0].shape[0] == 3
    with pytest.raises(ValueError, match=r"\(batch, 2, sample\)"):
        model(torch.zeros(3, 200))


@pytest.mark.parametrize(
    ("call", "fragments"),
    [
        (lambda: small("stft")(torch.zeros(1, 63)), ("at least 64 samples", "(1, 1, 63)")),
        (lambda: small("wave")(torch.zeros(1, 2, 99)), ("(batch, sample)", "(1, 2, 99)")),
        (lambda: small("spectrum")(torch.zeros(1, 1, 300)), ("at least 224 samples", "(1, 1, 300)")),
        (lambda: small("patch")(torch.zeros(1, 8, 32)), ("at least 12 rows",)),
        (lambda: TwoSidedStftDiscriminator(100), ("win_length", "128", "100")),
        (lambda: TwoSidedStftDiscriminator(256, n_fft=128), ("n_fft", "128, 256")),
        (lambda: TwoSidedStftDiscriminator(norm="batch"), ("norm", "'batch'")),
        (lambda: MultiScaleStftDiscriminator([64], [16, 8], [64]), ("one entry per resolution", "1, 2 and 1")),
        (lambda: MultiScaleStftDiscriminator([64], [16], [65]), ("win_length", "65")),
        (lambda: PooledWaveformDiscriminator([4], [5], [1], [1]), ("one entry per layer",)),
        (
            lambda: PooledWaveformDiscriminator.from_original_arguments({"channel_sizes": [4, 8]}),
            ("two equal widths", "(4, 8)"),
        ),
        (lambda: PatchDiscriminator(0), ("positive", "0")),
        (lambda: separation_term([torch.zeros(1, 2)], [torch.zeros(1, 3)]), ("shapes must be equal", "(1, 3)")),
        (lambda: hinge_generator_loss([]), ("at least one",)),
        (lambda: feature_matching_loss([[torch.zeros(1)]], [[]]), ("layers",)),
        (lambda: DiscriminatorDraw(["a", "a"]), ("different",)),
        (lambda: DiscriminatorDraw(["a"], temperature=0), ("temperature",)),
        (lambda: DiscriminatorDraw(["a"], decay=1), ("decay", "1 and")),
        (lambda: DiscriminatorDraw(["a"], decay=-0.1), ("decay", "-0.1")),
        (lambda: DiscriminatorDraw(["a"]).record("b", 1.0), ("'b'",)),
        (lambda: DiscriminatorDraw(["a"]).record("a", float("nan")), ("finite", "nan")),
        (lambda: DiscriminatorDraw(["a", "b", "c"]).num_quantizers("b", 1), ("at least 2",)),
    ],
)
def test_errors(call, fragments):
    with pytest.raises(ValueError) as error:
        call()
    assert_error(error, *fragments)


def test_two_equal_widths_are_one_layer():
    told = {"channel_sizes": [4, 4], "kernel_sizes": [3, 3], "strides": [1, 1], "groups": [1, 1], "n_blocks": 1}
    (stack,) = PooledWaveformDiscriminator.from_original_arguments(told).stacks
    assert [(conv.in_channels, conv.out_channels) for conv in stack] == [(1, 4), (4, 1)]


def test_sizes_of_the_codecs_own_discriminators():
    """SoundStream's, as the original builds them when it is told nothing."""
    with torch.device("meta"):
        stft, wave = TwoSidedStftDiscriminator(norm="none"), PooledWaveformDiscriminator(norm="none")
    strided = [block.strided_conv for block in stft.blocks]
    assert [(conv.in_channels, conv.out_channels, conv.stride) for conv in strided] == [
        (32, 64, (1, 2)),
        (64, 128, (2, 2)),
        (128, 128, (1, 2)),
        (128, 256, (2, 2)),
        (256, 256, (1, 2)),
        (256, 512, (2, 2)),
    ]
    assert (stft.n_fft, stft.hop_length, stft.output_conv.kernel_size) == (1024, 256, (1, 8))
    assert [pool.kernel_size for pool in wave.pools] == [(2,), (4,), (8,)]
    shapes = [(conv.out_channels, conv.kernel_size[0], conv.stride[0], conv.groups) for conv in wave.stacks[0]]
    assert shapes == [
        (16, 15, 1, 1),
        (64, 41, 4, 4),
        (256, 41, 4, 16),
        (512, 41, 4, 64),
        (1024, 41, 4, 256),
        (1024, 5, 1, 1),
        (1, 3, 1, 1),
    ]


def test_losses_by_hand():
    real, fake = (
        [torch.tensor([[2.0, 0.5]]), torch.tensor([[0.0]])],
        [torch.tensor([[-2.0, 0.0]]), torch.tensor([[3.0]])],
    )
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(((0.25 + 0.5) + (1 + 4)) / 2)
    assert hinge_generator_loss(fake).item() == pytest.approx((1.0 - 3.0) / 2)
    assert hinge_generator_loss(fake, bounded=True).item() == pytest.approx((2.0 + 0.0) / 2)
    assert separation_term(real, fake, weight=0.1).item() == pytest.approx(0.1 / 2.25 + 0.1 / 3)
    assert separation_term([real[0]], [real[0]], weight=1.0, offset=0.1).item() == pytest.approx(10.0)
    maps = [[torch.tensor([1.0, 3.0]), torch.tensor([2.0])]], [[torch.tensor([2.0, 2.0]), torch.tensor([2.0])]]
    assert feature_matching_loss(*maps, reduction="mean").item() == pytest.approx(0.5)
    assert feature_matching_loss(*maps, reduction="mean", relative=True, offset=2.0).item() == pytest.approx(0.125)


def test_the_separation_term_rises_as_logits_meet():
    real = [torch.ones(1, 4)]
    values = [separation_term(real, [torch.full((1, 4), 1 - gap)]).item() for gap in (1.0, 0.1, 0.01)]
    assert values == pytest.approx([1e-3, 1e-2, 1e-1], rel=1e-4)


def test_the_draw_follows_the_energies():
    draw = DiscriminatorDraw(["wave", "long", "short"], decay=0.5)
    torch.testing.assert_close(draw.probabilities(), torch.full((3,), 1 / 3, dtype=torch.float64))
    for _ in range(3):
        draw.record("wave", 1.0)
        draw.record("short", torch.tensor(3.0))
    expected = torch.softmax(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), dim=0)
    torch.testing.assert_close(draw.probabilities(), expected)
    generator = torch.Generator().manual_seed(0)
    drawn = [draw.draw(generator) for _ in range(2000)]
    counts = torch.tensor([drawn.count(name) for name in draw.names], dtype=torch.float64) / len(drawn)
    torch.testing.assert_close(counts, expected, rtol=0, atol=0.04)
    again = torch.Generator().manual_seed(0)
    assert [draw.draw(again) for _ in range(20)] == drawn[:20]
    loaded = DiscriminatorDraw(draw.names)
    loaded.load_state_dict(draw.state_dict())
    torch.testing.assert_close(loaded.probabilities(), expected)
    draw.record("wave", 9.0)
    assert draw.probabilities().argmax() == 0


def test_bitrates_of_the_discriminators():
    draw = DiscriminatorDraw(["wave", *(str(size) for size in (2048, 1024, 512, 256, 128))])
    assert [draw.num_quantizers(name, 8) for name in draw.names] == [8, 1, 2, 3, 4, 8]
    assert [draw.num_quantizers(name, 10) for name in draw.names] == [10, 2, 4, 6, 8, 10]
    assert DiscriminatorDraw(["only"]).num_quantizers("only", 3) == 3
