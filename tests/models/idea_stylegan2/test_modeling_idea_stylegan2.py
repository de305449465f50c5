"""The style-based idea model: contract, any proportions, durations, generation, original checkpoints, errors."""

from __future__ import annotations

import doctest
import pickle
from functools import partial

import pytest
import torch
from borders import check_borders, from_one
from huggingface_hub.errors import StrictDataclassError
from model_checks import assert_recomputing_changes_nothing
from safetensors.torch import save_file
from testing_utils import ModelContractMixin, assert_error
from transformers import AutoModel

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.models.idea_stylegan2 import modeling_idea_stylegan2
from melreformer_hf.models.idea_stylegan2.configuration_idea_stylegan2 import IdeaStyleGan2Config
from melreformer_hf.models.idea_stylegan2.modeling_idea_stylegan2 import IdeaStyleGan2Model
from melreformer_hf.models.idea_stylegan2.weights_idea_stylegan2 import (
    channels_from_original,
    configuration_from_original,
)
from melreformer_hf.models.mel_reformer.configuration_mel_reformer import MelReformerConfig
from melreformer_hf.models.mel_reformer.modeling_mel_reformer import MelReformerModel

MEL = MelConfig.preset("hifigan", num_mel_bins=12, fmax=None).to_dict()
SIZES = {"mel": MEL, "num_columns": 20, "style_size": 16, "num_mapping_layers": 3, "channels": (8, 8, 6)}


def tiny_config(**overrides) -> IdeaStyleGan2Config:
    return IdeaStyleGan2Config(**{**SIZES, **overrides})


def tiny_model(**overrides) -> IdeaStyleGan2Model:
    torch.manual_seed(0)
    model = IdeaStyleGan2Model(tiny_config(**overrides)).eval()
    with torch.no_grad():
        for conv in model.synthesis.convs:
            conv.noise_strength.fill_(0.3)
    return model


def latents(batch: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(seed))[:batch]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestIdeaStyleGan2(ModelContractMixin):
    model_class = IdeaStyleGan2Model
    main_output = "sample"

    def config(self):
        return tiny_config()

    def inputs(self, batch):
        return {"latents": latents(batch)}

    def loss(self, output):
        return output.sample.square().mean() + output.log2_num_frames.square().mean()


@pytest.mark.parametrize(
    ("bins", "columns", "widths", "coarsest"),
    [(12, 20, (8, 8, 6), (3, 5)), (8, 64, (6, 6, 4, 4), (1, 8)), (16, 16, (5, 4), (8, 8)), (7, 3, (6,), (7, 3))],
)
def test_any_proportions(bins, columns, widths, coarsest):
    mel = MelConfig.preset("hifigan", num_mel_bins=bins, fmax=None).to_dict()
    model = tiny_model(mel=mel, num_columns=columns, channels=widths)
    output = model(latents(2))
    assert model.config.coarsest_shape == coarsest
    assert output.sample.shape == (2, 1, bins, columns)
    assert output.styles.shape == (2, 2 * len(widths), 16)
    assert output.log2_num_frames.shape == (2,)


def test_tiny_preset_draws_full_size_ideas():
    torch.manual_seed(0)
    model = IdeaStyleGan2Model(IdeaStyleGan2Config.preset("tiny")).eval()
    drawn = model.sample(1, seeded(0))
    assert drawn.ideas.shape == (1, 128, 256) and model.config.num_styles == 12
    assert model.config.coarsest_shape == (4, 8)
    with pytest.raises(ValueError, match="base"):
        IdeaStyleGan2Config.preset("large")


@pytest.mark.parametrize(("size", "count"), [(128, 29_328_669), (256, 30_034_338)])
def test_published_parameter_counts(size, count):
    with torch.device("meta"):
        model = IdeaStyleGan2Model(configuration_from_original({"size": size, "style_dim": 512, "n_mlp": 8}))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_scaled_activations_equal_scaled_weights():
    """The definition: every picture's own weight, scaled by its style and normalized."""
    conv = tiny_model().synthesis.blocks[1].conv.conv
    hidden, style = torch.randn(3, 8, 6, 10, generator=seeded(2)), latents(3)
    scales = conv.modulation(style)
    weights = conv.weight[None] * conv.scale * scales[:, None, :, None, None]
    weights = weights / (weights.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    expected = [
        torch.nn.functional.conv2d(row[None], weight, padding=1) for row, weight in zip(hidden, weights, strict=True)
    ]
    torch.testing.assert_close(conv(hidden, style), torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_mixing_takes_the_duration_of_the_coarse_style():
    model, first, second = tiny_model(), latents(2), latents(2, seed=2)
    with torch.no_grad():
        plain, other = model(first), model(second)
        mixed = model(first, mixing_latents=second, mixing_index=2)
        torch.testing.assert_close(mixed.log2_num_frames, plain.log2_num_frames)
        torch.testing.assert_close(mixed.styles[:, :2], plain.styles[:, :2])
        torch.testing.assert_close(mixed.styles[:, 2:], other.styles[:, 2:])
        assert (mixed.sample - plain.sample).abs().max() > 1e-2
        again = model(styles=mixed.styles)
        torch.testing.assert_close(again.sample, mixed.sample)


def test_truncation_pulls_pictures_and_durations_towards_the_mean():
    model = tiny_model()
    model.measure_style_mean(generator=seeded(3))
    with torch.no_grad():
        spreads = []
        for psi in (1.0, 0.5, 0.0):
            output = model(latents(8), truncation_psi=psi)
            spreads.append((output.log2_num_frames.std().item(), output.sample.std(0).mean().item()))
        torch.testing.assert_close(model(latents(8)).sample, model(latents(8), truncation_psi=1.0).sample)
    for before, after in zip(spreads, spreads[1:], strict=False):
        assert after[0] < before[0] and after[1] < before[1]
    assert spreads[0][0] == pytest.approx(2 * spreads[1][0], rel=1e-3) and spreads[2][1] < 1e-5


def test_style_mean_follows_in_training_and_is_saved(tmp_path):
    model = tiny_model(style_mean_decay=0.5)
    with torch.no_grad():
        expected = 0.5 * model.mapping(latents(4)).mean(0)
        model(latents(4))
        assert not model.style_mean.any()
        model.train()(latents(4))
    torch.testing.assert_close(model.style_mean, expected)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(AutoModel.from_pretrained(tmp_path).style_mean, expected)
    measured = model.measure_style_mean(6, seeded(4))
    with torch.no_grad():
        torch.testing.assert_close(measured, model.mapping(torch.randn(6, 16, generator=seeded(4))).mean(0))


def test_noise_kinds():
    model = tiny_model()
    with torch.no_grad():
        constant = model(latents(2)).sample
        torch.testing.assert_close(constant, model(latents(2), noise="constant").sample, rtol=0, atol=0)
        assert (model(latents(2), noise="random").sample - constant).abs().max() > 1e-3
        assert (model.train()(latents(2)).sample - constant).abs().max() > 1e-3
        drawn = model.eval().draw_noise(2, seeded(5))
        assert [tuple(noise.shape[2:]) for noise in drawn] == [(3, 5), (6, 10), (6, 10), (12, 20), (12, 20)]
        made = model(latents(2), noise=drawn).sample
        torch.testing.assert_close(made, model(latents(2), noise=model.draw_noise(2, seeded(5))).sample)


def test_generation_is_repeatable_and_rows_stay():
    model = tiny_model()
    one, three = model.sample(1, seeded(0), truncation_psi=0.7), model.sample(3, seeded(0), truncation_psi=0.7)
    torch.testing.assert_close(one.ideas, three.ideas[:1], rtol=1e-4, atol=1e-5)
    assert torch.equal(one.num_frames, three.num_frames[:1]) and three.num_frames.dtype == torch.int64
    assert (three.ideas[0] - three.ideas[1]).abs().max() > 1e-2
    listed = model.sample(2, [seeded(7), seeded(0)], truncation_psi=0.7)
    torch.testing.assert_close(listed.ideas[1:], one.ideas, rtol=1e-4, atol=1e-5)
    assert three.ideas.min() >= model.config.mel_config.floor_value
    torch.manual_seed(11)
    unseeded = model.sample(1)
    torch.manual_seed(11)
    torch.testing.assert_close(model.sample(1).ideas, unseeded.ideas)


def test_durations_are_limited_and_can_be_given():
    limits = {"log2_frames_mean": 5.0, "log2_frames_std": 4.0, "log2_frames_min": 4.0, "log2_frames_max": 6.5}
    model = tiny_model(**limits)
    frames = model.sample(64, seeded(1)).num_frames
    assert frames.min() == 16 and frames.max() == 91 and frames.unique().numel() > 4
    assert model.sample(2, seeded(1), num_frames=300).num_frames.tolist() == [300, 300]
    given = model.sample(2, seeded(1), num_frames=torch.tensor([7, 9]))
    assert given.num_frames.tolist() == [7, 9]
    silent = tiny_model(predict_duration=False)
    assert silent(latents(1)).log2_num_frames is None
    assert silent.sample(1, seeded(1), num_frames=40).num_frames.tolist() == [40]
    with pytest.raises(ValueError, match="num_frames must be given"):
        silent.sample(1)


def path_length(output) -> torch.Tensor:
    """A loss with a gradient inside, as the path length penalty has."""
    gradient = torch.autograd.grad(output.sample.square().sum(), output.styles, create_graph=True)[0]
    return gradient.square().sum().sqrt() + output.log2_num_frames.mean()


def test_activations_are_recomputed_under_a_penalty_of_gradients():
    assert_recomputing_changes_nothing(tiny_model(), {"latents": latents(2)}, path_length)


def test_normalization_goes_both_ways():
    model = tiny_model(mel_mean=-4.0, mel_std=2.0, log2_frames_mean=9.0, log2_frames_std=0.5)
    idea = torch.randn(2, 12, 20, generator=seeded(1)) - 5
    sample = model.normalize_idea(idea)
    assert sample.shape == (2, 1, 12, 20)
    torch.testing.assert_close(sample[:, 0], (idea + 4) / 2)
    torch.testing.assert_close(model.denormalize_idea(sample), idea)
    torch.testing.assert_close(model.normalize_duration(torch.tensor([10.0])), torch.tensor([2.0]))


def test_feeds_the_expansion():
    model = tiny_model(log2_frames_mean=5.0, log2_frames_min=4.0, log2_frames_max=6.0)
    drawn = model.sample(2, seeded(2))
    config = MelReformerConfig(
        mel=MEL,
        idea_columns=20,
        fold_size=4,
        hidden_size=16,
        intermediate_size=16,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_attention_heads=2,
        postnet_layers=1,
        postnet_size=8,
    )
    model.config.mel_config.check_matches(config.mel_config)
    expansion = MelReformerModel(config).eval()
    mel = expansion.generate(drawn.ideas, drawn.num_frames)
    assert mel.shape == (2, 12, drawn.num_frames.max())


ARGUMENTS = {"size": 16, "style_dim": 12, "n_mlp": 2, "channels": {"4": 8, "8": 6, "16": 4}}


def original_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return IdeaStyleGan2Model(configuration_from_original(ARGUMENTS)).to_original_state_dict()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_original_files(suffix, tmp_path):
    weights, path = original_weights(), tmp_path / f"g{suffix}"
    released = {"g_ema": weights, "latent_avg": torch.zeros(12)}
    save_file(weights, path) if suffix == ".safetensors" else torch.save(released, path)
    loaded = IdeaStyleGan2Model.from_original(path, {**ARGUMENTS, "lr_mlp": 0.02, "blur_kernel": [1, 3, 3, 1]})
    assert loaded.config.mapping_rate_multiplier == 0.02 and loaded.style_mean.any()
    assert loaded(torch.zeros(1, 12)).sample.shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="num_channels=1, this model has 3"):
        loaded.sample(1, num_frames=3)


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        ({"input.input": None}, ("missing key 'input.input'",)),
        ({"conv1.bias": torch.ones(3)}, ("unexpected key 'conv1.bias'",)),
        ({"convs.7.activate.bias": torch.ones(3)}, ("unexpected key 'convs.7.activate.bias'",)),
        ({"conv1.conv.weight": torch.ones(2, 8, 8, 3, 3)}, ("conv1.conv.weight", "(2, 8, 8, 3, 3)")),
        ({"convs.0.conv.blur.kernel": None}, ("missing key 'convs.0.conv.blur.kernel'",)),
        ({"to_rgbs.1.upsample.kernel": torch.ones(4, 4)}, ("to_rgbs.1.upsample.kernel", "other values")),
        ({"args": 3}, ("'args'", "int")),
    ],
)
def test_broken_originals(change, fragments):
    weights = {key: value for key, value in {**original_weights(), **change}.items() if value is not None}
    with pytest.raises(ValueError) as error:
        IdeaStyleGan2Model.from_original(weights, ARGUMENTS)
    assert_error(error, *fragments)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ({**ARGUMENTS, "n_mpl": 3}, ("no argument 'n_mpl'",)),
        ({"size": 16, "n_mlp": 3}, ("'style_dim' is missing",)),
        ({**ARGUMENTS, "size": 24}, ("size", "power of two", "24")),
        ({**ARGUMENTS, "size": 32}, ("channels", "[32]")),
        ({**ARGUMENTS, "style_dim": 13}, ("style.1.weight", "(12, 12)", "(13, 13)")),
    ],
)
def test_arguments_that_do_not_fit(arguments, fragments):
    with pytest.raises(ValueError) as error:
        IdeaStyleGan2Model.from_original(original_weights(), arguments)
    assert_error(error, *fragments)


class Payload:
    def __reduce__(self):
        return print, ("code from a checkpoint ran",)


def test_hostile_originals_and_other_mels(tmp_path, capsys):
    (tmp_path / "g.pt").write_bytes(pickle.dumps({"g_ema": Payload()}))
    with pytest.raises(ValueError, match="refused"):
        IdeaStyleGan2Model.from_original(tmp_path / "g.pt", ARGUMENTS)
    assert capsys.readouterr().out == ""
    mel = MelConfig.preset("melgan", num_mel_bins=16).to_dict()
    assert IdeaStyleGan2Model.from_original(original_weights(), ARGUMENTS, mel=mel).config.mel_config.log_base == "10"
    with pytest.raises(ValueError, match="size must be the mel contract's num_mel_bins, 80, got 16"):
        IdeaStyleGan2Model.from_original(original_weights(), ARGUMENTS, mel=MelConfig.preset("melgan").to_dict())
    assert channels_from_original({"size": 256}) == (512, 512, 512, 512, 512, 256, 128)
    assert channels_from_original({"size": 64, "channel_multiplier": 1}) == (512, 512, 512, 512, 256)
    with pytest.raises(ValueError, match="num_channels=1"):
        tiny_model().to_original_state_dict()


def test_wrong_inputs():
    model = tiny_model()
    styles = torch.zeros(1, 6, 16)
    for call, pattern in [
        (lambda: model(), "Exactly one of latents and styles"),
        (lambda: model(latents(1), styles=styles), "Exactly one"),
        (lambda: model(torch.zeros(1, 15)), r"latents must be \(batch, 16\), got \(1, 15\)"),
        (lambda: model(styles=styles[:, 1:]), r"styles must be \(batch, 6, 16\), got \(1, 5, 16\)"),
        (lambda: model(latents(1), mixing_latents=latents(1)), "given together"),
        (lambda: model(latents(1), mixing_latents=latents(1), mixing_index=7), "1..6, got 7"),
        (lambda: model(latents(1), noise="loud"), "noise must be .* got 'loud'"),
        (lambda: model(latents(1), noise=[]), "must hold 5 tensors"),
        (lambda: model(latents(3), noise=model.draw_noise(2)), r"noise\[0\] must have shape \(3 or 1, 1, 3, 5\)"),
        (lambda: model.sample(0), "batch_size must be"),
        (lambda: model.sample(2, [seeded(0)]), "got 1 for batch_size=2"),
        (lambda: model.sample(2, num_frames=0), "num_frames must be a positive whole number"),
        (lambda: model.sample(2, num_frames=1.5), "num_frames"),
        (lambda: model.sample(2, num_frames=torch.tensor([1, 2, 3])), "or 2 of them"),
    ]:
        with pytest.raises(ValueError, match=pattern):
            call()


@pytest.mark.parametrize(
    ("fields", "fragments"),
    [
        ({"style_size": 0}, ("style_size", "0")),
        ({"channels": ()}, ("channels", "()")),
        ({"channels": (8, 1.5)}, ("channels", "1.5")),
        ({"num_columns": 250}, ("num_columns", "multiple of 32", "250")),
        ({"channels": (8,) * 9}, ("num_mel_bins", "multiple of 256", "128")),
        ({"blur_taps": (1,)}, ("blur_taps", "(1,)")),
        ({"mapping_rate_multiplier": 0.0}, ("mapping_rate_multiplier", "0.0")),
        ({"style_mean_decay": 1.0}, ("style_mean_decay", "1.0")),
        ({"mel_std": 0.0}, ("mel_std", "positive")),
        ({"mel_mean": float("nan")}, ("mel_mean", "finite")),
        ({"log2_frames_min": 15.0}, ("log2_frames_min", "15.0", "14.0")),
    ],
)
def test_configurations_that_break_a_rule(fields, fragments):
    with pytest.raises(StrictDataclassError) as error:
        IdeaStyleGan2Config(**fields)
    assert_error(error, *fragments)


def test_docstrings_run():
    results = doctest.testmod(modeling_idea_stylegan2)
    assert results.failed == 0 and results.attempted > 3


def test_borders_of_the_configuration():
    inside, outside = from_one("num_channels", "style_size", "num_mapping_layers")
    numbers = ("mel_mean", "log2_frames_mean", "log2_frames_min", "log2_frames_max")
    inside |= {
        "num_columns": ({"num_columns": 1, "channels": (4,)}, 32),
        "channels": ((1,),),
        "blur_taps": ((1, 1), (0.0, 1.0)),
        "mapping_rate_multiplier": (1e-9,),
        "style_mean_decay": (0.0, 0.999),
        "mel_std": (1e-9,),
        "log2_frames_std": (1e-9,),
        "log2_frames_min": (14.0,),
    }
    outside |= dict.fromkeys(numbers, (float("inf"), float("nan"))) | {
        "num_columns": (0, 48),
        "channels": ((), (4, 0), (4, True), (4, 2.0)),
        "blur_taps": ((1,), (1, -1)),
        "mapping_rate_multiplier": (0.0,),
        "style_mean_decay": (-0.01, 1.0),
        "mel_std": (0.0, float("nan")),
        "log2_frames_std": (0.0, float("inf")),
        "log2_frames_min": (14.1, float("nan")),
    }
    check_borders(partial(IdeaStyleGan2Config.preset, "tiny"), inside, outside)
