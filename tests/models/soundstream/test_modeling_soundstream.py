"""The codec's contract, its streams, its lengths and bitrates, its training."""

from __future__ import annotations

import doctest
from functools import partial

import pytest
import torch
from borders import check_borders, from_one
from model_checks import assert_recomputing_changes_nothing
from testing_utils import ModelContractMixin, assert_error
from transformers import AutoModel, AutoModelForAudioTokenization, EncodecFeatureExtractor
from transformers.modeling_utils import PreTrainedAudioTokenizerBase

from melreformer_hf.models.soundstream import modeling_soundstream
from melreformer_hf.models.soundstream.configuration_soundstream import SoundStreamConfig
from melreformer_hf.models.soundstream.modeling_soundstream import SoundStreamModel, SoundStreamState

SPECTRAL = {
    "architecture": "spectral",
    "n_fft": 80,
    "synthesis_overlap": 7,
    "frame_size": 24,
    "frame_intermediate_size": 48,
    "num_frame_layers": 2,
}
VARIANTS = {
    "spectral": SPECTRAL,
    "spectral, long overlap, found by angle": {
        **SPECTRAL,
        "n_fft": 32,
        "synthesis_overlap": 32,
        "codebook_normalize": True,
        "kmeans_iterations": 0,
    },
    "plain": {},
    "gradient codebooks, factorized": {"codebook_update": "gradient", "codebook_dim": 4, "kmeans_iterations": 0},
    "depthwise, elu, other strides": {"depthwise": True, "activation": "elu", "strides": (3, 5)},
    "maps, sizes per level": {"som_radius": 1.5, "codebook_size": (32, 32, 16)},
    "wavelets and multiresolution": {"wavelet_blocks": (0, 2), "multires_depth": 4, "multires_kernel_size": 3},
}


def build(**overrides) -> SoundStreamModel:
    torch.manual_seed(0)
    return SoundStreamModel(SoundStreamConfig.preset("tiny", **overrides)).eval()


def noise(batch: int, samples: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(seed)) * 0.3


class TestSoundStreamContract(ModelContractMixin):
    model_class = SoundStreamModel
    main_output = "audio_values"

    def config(self):
        parts = {"wavelet_blocks": (1,), "multires_depth": 2, "multires_kernel_size": 3}
        return SoundStreamConfig.preset("tiny", num_residual_units=1, **parts)

    def inputs(self, batch):
        return {"input_values": noise(3, 200)[:batch]}

    @torch.no_grad()
    def steps(self, model):
        if model.config.padding != "causal":
            return {}
        encoded = model.encode(noise(1, 50), state=SoundStreamState())
        decoded = model.decode(encoded.audio_codes, SoundStreamState())
        return {
            "encode": (lambda chunk, state: model.encode(chunk, state=state), (noise(1, 50, seed=2), encoded.state)),
            "decode": (model.decode, (encoded.audio_codes, decoded.state)),
        }


class TestEverythingContract(TestSoundStreamContract):
    """Every optional part at once."""

    @pytest.fixture(autouse=True)
    def _smaller_graph(self, monkeypatch):
        monkeypatch.setattr("melreformer_hf.models.soundstream.energy_soundstream._MAX_HALVINGS", 2)

    def config(self):
        return SoundStreamConfig.preset(
            "tiny",
            codebook_update="gradient",
            kmeans_iterations=0,
            codebook_dim=4,
            depthwise=True,
            wavelet_blocks=(1,),
            multires_depth=3,
            energy_stage="after_quantizer",
            num_energy_heads=2,
            num_energy_steps=2,
            num_residual_units=1,
            padding="original",
        )


class TestSpectralContract(TestSoundStreamContract):
    def config(self):
        return SoundStreamConfig.preset("tiny", **SPECTRAL)


@pytest.fixture(params=VARIANTS, ids=str)
def model(request):
    return build(**VARIANTS[request.param])


@torch.no_grad()
@pytest.mark.parametrize("sizes", [(203,), (1,) * 70, (64, 1, 0, 138), (100, 33)])
def test_a_stream_equals_the_whole(model, sizes):
    waveform = noise(2, sum(sizes))
    whole = model.encode(waveform)
    codes = list(model.stream_encode(waveform.split(sizes, dim=-1)))
    assert torch.equal(torch.cat(codes, dim=-1), whole.audio_codes)
    pieces = torch.cat(list(model.stream_decode(codes)), dim=-1)
    torch.testing.assert_close(pieces, model.decode(whole.audio_codes).audio_values, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_memory_of_a_stream_is_constant_and_can_be_continued_twice(model):
    def sizes(state):
        return sum(part.numel() for item in state.memory for part in (item if isinstance(item, tuple) else (item,)))

    hop, state, seen = model.config.hop_length, SoundStreamState(), []
    waveform = noise(1, 40 * hop)
    latents = []
    for chunk in waveform.split(hop, dim=-1):
        output = model.encode(chunk, state=state)
        state = output.state
        latents.append(output.latents)
        seen.append(sizes(state))
    assert len(set(seen)) == 1
    torch.testing.assert_close(torch.cat(latents, dim=-1), model.encode(waveform).latents, rtol=1e-4, atol=1e-5)
    one, two = (model.encode(noise(1, hop, seed=2), state=state).latents for _ in range(2))
    assert torch.equal(one, two)


@torch.no_grad()
def test_the_past_does_not_see_the_future(model):
    hop = model.config.hop_length
    waveform = noise(1, 6 * hop + 3)
    changed = waveform.clone()
    changed[..., 4 * hop - 1 :] += 1.0
    before, after = model.encode(waveform), model.encode(changed)
    assert torch.equal(before.latents[..., :3], after.latents[..., :3])
    assert not torch.allclose(before.latents[..., 3], after.latents[..., 3])
    changed_codes = before.audio_codes.clone()
    changed_codes[..., 4:] = (changed_codes[..., 4:] + 1) % min(model.config.codebook_sizes)
    one, two = model.decode(before.audio_codes).audio_values, model.decode(changed_codes).audio_values
    assert torch.equal(one[..., : 4 * hop], two[..., : 4 * hop])
    assert not torch.allclose(one[..., 4 * hop : 5 * hop], two[..., 4 * hop : 5 * hop])


@torch.no_grad()
@pytest.mark.parametrize("padding", ["causal", "original"])
@pytest.mark.parametrize("samples", [1, 31, 32, 33, 500])
def test_any_length(padding, samples):
    model = build(padding=padding)
    waveform = noise(2, samples)
    output = model(waveform)
    frames = -(-samples // model.config.hop_length)
    assert output.audio_values.shape == waveform.shape
    assert output.audio_codes.shape == (2, model.config.num_quantizers, frames)
    assert model.decode(output.audio_codes).audio_values.shape == (2, 1, frames * model.config.hop_length)


@torch.no_grad()
def test_any_prefix_of_codebooks(model):
    waveform, config = noise(2, 150), model.config
    every = model.encode(waveform).audio_codes
    for levels in range(1, config.num_quantizers + 1):
        codes = model.encode(waveform, num_quantizers=levels).audio_codes
        assert torch.equal(codes, every[:, :levels])
        assert torch.equal(model.encode(waveform, bandwidth=config.bandwidth(levels) + 0.01).audio_codes, codes)
        expected = model(waveform, num_quantizers=levels)
        assert torch.equal(expected.audio_codes, codes)
        decoded = model.decode(every[:, :levels]).audio_values[..., :150]
        torch.testing.assert_close(decoded, expected.audio_values, rtol=1e-4, atol=1e-5)
    bits = sum(size.bit_length() - 1 for size in config.codebook_sizes)
    assert config.bandwidth() == pytest.approx(config.frame_rate * bits / 1000)


@torch.no_grad()
@pytest.mark.parametrize("energy_stage", ["none", "before_quantizer", "after_quantizer"])
def test_padding_changes_nothing(energy_stage):
    model = build(energy_stage=energy_stage, num_energy_heads=2)
    short, long = noise(1, 100), noise(1, 170, seed=2)
    padded = torch.cat([torch.nn.functional.pad(short, (0, 70), value=0.7), long])
    mask = torch.arange(170) < torch.tensor([[100], [170]])
    output, alone = model(padded, mask), model(short)
    codes = model.encode(padded, mask).audio_codes
    assert torch.equal(codes, output.audio_codes)
    assert torch.equal(codes[:1, :, :4], alone.audio_codes) and (codes[0, :, 4:] == -1).all() and codes[1].min() >= 0
    torch.testing.assert_close(output.audio_values[:1, :, :100], alone.audio_values, rtol=1e-4, atol=1e-5)
    decoded = model.decode(codes).audio_values
    torch.testing.assert_close(decoded[:1, :, :100], alone.audio_values, rtol=1e-4, atol=1e-5)
    error = (output.audio_values - padded).abs()
    torch.testing.assert_close(output.reconstruction_loss, error[mask.unsqueeze(1)].mean())


@torch.no_grad()
def test_the_error_of_one_sample_of_music_and_of_none():
    model, waveform = build(), noise(2, 40)
    alone = torch.zeros(2, 40, dtype=torch.bool)
    alone[1, 0] = True
    output = model(waveform, alone)
    expected = (output.audio_values - waveform)[1, 0, 0].abs()
    torch.testing.assert_close(output.reconstruction_loss, expected)
    assert model(waveform, torch.zeros(2, 40)).reconstruction_loss == 0
    assert model.encode(waveform, torch.zeros(2, 40)).audio_codes.unique().tolist() == [-1]


def test_training_fits_a_short_sound():
    torch.manual_seed(0)
    model = build(quantizer_dropout=0.5).train()
    time = torch.arange(256) / 8000
    waveform = 0.5 * torch.stack([(440 * k * 6.2832 * time).sin() for k in (1, 2)]).unsqueeze(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    model.initialize_codebooks(waveform, generator=torch.Generator().manual_seed(0))
    codewords = model.quantizer.codebook(0).codewords.clone()
    losses = []
    for step in range(30):
        output = model(waveform, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        model.accumulate_codebooks(output)
        assert model.update_codebooks(torch.Generator().manual_seed(step))
        losses.append(output.reconstruction_loss.item())
    assert not torch.equal(model.quantizer.codebook(0).codewords, codewords)
    silence = waveform.abs().mean().item()
    assert sum(losses[-5:]) / 5 < 0.6 * silence


def test_forward_never_moves_a_codebook_and_a_broken_sample_never_reaches_one():
    model = build(codebook_update="ema", kmeans_iterations=0).train()
    before = {name: value.clone() for name, value in model.quantizer.state_dict().items()}
    broken = noise(2, 100)
    broken[1, 0, 50] = float("nan")
    for waveform in (noise(2, 100), broken):
        model.accumulate_codebooks(model(waveform))
    assert not model.update_codebooks()
    for name, value in model.quantizer.state_dict().items():
        assert torch.equal(value, before[name]), name
    model.accumulate_codebooks(model(noise(2, 100)))
    assert model.update_codebooks()
    assert all(value.isfinite().all() for value in model.quantizer.state_dict().values())
    assert not torch.equal(model.quantizer.codebook(0).codewords, before["codebooks.0.codewords"])


@pytest.mark.parametrize("overrides", [{}, {"wavelet_blocks": (1,), "multires_depth": 3}], ids=str)
def test_activations_may_be_recomputed(overrides):
    model = build(quantizer_dropout=0.5, **overrides)
    assert_recomputing_changes_nothing(model, {"input_values": noise(2, 200)}, lambda output: output.loss)


@torch.no_grad()
@pytest.mark.parametrize(
    "overrides",
    [
        {"codebook_update": "gradient", "codebook_dim": 4, "som_radius": 1.5, "depthwise": True},
        {"energy_stage": "before_quantizer", "num_energy_heads": 2, "num_energy_steps": 1, "quantizer_dropout": 0.5},
    ],
    ids=str,
)
def test_a_training_forward_is_one_graph(overrides, monkeypatch):
    monkeypatch.setattr("melreformer_hf.models.soundstream.energy_soundstream._MAX_HALVINGS", 2)  # a smaller graph
    model = build(strides=(2, 3), num_residual_units=1, **overrides).train()
    torch.compiler.reset()
    outputs = []
    for run in (model, torch.compile(model, backend="eager", fullgraph=True)):
        torch.manual_seed(0)
        outputs.append(run(noise(2, 41)))
    torch.testing.assert_close(outputs[1].audio_values, outputs[0].audio_values, rtol=1e-4, atol=1e-5)
    model.accumulate_codebooks(outputs[1])
    assert model.update_codebooks()


def test_a_codec_loaded_in_half_precision_goes_on_learning(tmp_path):
    build(kmeans_iterations=0).save_pretrained(tmp_path)
    model = SoundStreamModel.from_pretrained(tmp_path, dtype=torch.bfloat16).train()
    assert model.quantizer.codebook(0).codewords.dtype == torch.bfloat16
    assert model.quantizer.codebook(0).cluster_size.dtype == torch.float32
    for step in range(3):
        before = model.quantizer.codebook(0).cluster_size.clone()
        model.accumulate_codebooks(model(noise(2, 200, seed=step).bfloat16()))
        assert model.update_codebooks()
        assert not torch.equal(model.quantizer.codebook(0).cluster_size, before)


def test_weight_norm_trains_and_is_saved_folded(tmp_path):
    model, waveform = build(), noise(1, 100)
    with torch.no_grad():
        expected = model(waveform).audio_values
        model.apply_weight_norm()
        torch.testing.assert_close(model(waveform).audio_values, expected, rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = SoundStreamModel.from_pretrained(tmp_path).eval()
    assert {name for name, _ in loaded.named_parameters()} == {name for name, _ in build().named_parameters()}
    with torch.no_grad():
        torch.testing.assert_close(loaded(waveform).audio_values, expected, rtol=1e-4, atol=1e-5)
    model.remove_weight_norm()
    assert model.state_dict().keys() == loaded.state_dict().keys()


def test_auto_classes_know_the_audio_tokenizer(tmp_path):
    model = build()
    assert isinstance(model, PreTrainedAudioTokenizerBase)
    model.save_pretrained(tmp_path)
    for auto in (AutoModel, AutoModelForAudioTokenization):
        loaded = auto.from_pretrained(tmp_path)
        assert type(loaded) is SoundStreamModel
        assert torch.equal(loaded.encode(noise(1, 90)).audio_codes, model.encode(noise(1, 90)).audio_codes)


@torch.no_grad()
def test_a_feature_extractor_of_transformers_prepares_its_inputs():
    model = build()
    sounds = [noise(1, samples)[0, 0].numpy() for samples in (90, 130)]
    extractor = EncodecFeatureExtractor(feature_size=1, sampling_rate=model.config.sampling_rate)
    features = extractor(sounds, sampling_rate=8000, padding=True, return_tensors="pt")
    output = model(**features)
    for row, sound in enumerate(sounds):
        alone = model(torch.from_numpy(sound)[None, None])
        frames = alone.audio_codes.shape[-1]
        assert torch.equal(output.audio_codes[row, :, :frames], alone.audio_codes[0])
        expected = alone.audio_values[0, 0]
        torch.testing.assert_close(output.audio_values[row, 0, : len(sound)], expected, rtol=1e-4, atol=1e-5)


def test_sizes_of_the_presets():
    """Counted by hand: stem, units and stride of every block, last convolution; codebooks."""
    with torch.device("meta"):
        model = SoundStreamModel(SoundStreamConfig.preset("soundstream"))
    config = model.config
    assert (config.hop_length, config.frame_rate, config.bandwidth()) == (320, 75.0, 6.0)

    def weights(part):
        return sum(parameter.numel() for parameter in part.parameters() if parameter.ndim > 1)

    blocks = sum(
        3 * (7 + 1) * width**2 + 2 * stride * width * 2 * width
        for width, stride in ((32, 2), (64, 4), (128, 5), (256, 8))
    )
    assert weights(model.encoder) == 7 * 32 + blocks + 3 * 512 * 512 == 5_374_176
    assert weights(model.decoder) == 7 * 512 * 512 + blocks + 7 * 32 == 6_422_752
    assert sum(book.codewords.numel() for book in model.quantizer.codebooks) == 8 * 1024 * 512


@pytest.mark.parametrize(
    ("call", "fragments"),
    [
        (lambda m: m(torch.zeros(1, 100)), ("input_values", "(batch, 1, sample)", "(1, 100)")),
        (lambda m: m(torch.zeros(1, 1, 0)), ("at least 1 sample", "(1, 1, 0)")),
        (lambda m: m.encode(noise(1, 9), num_quantizers=4), ("num_quantizers", "1..3", "got 4")),
        (lambda m: m.encode(noise(1, 9), bandwidth=0.1), ("bandwidth", "1.25 kbps", "got 0.1")),
        (lambda m: m.encode(noise(1, 9), num_quantizers=1, bandwidth=9), ("not both", "1 and 9")),
        (lambda m: m.encode(noise(1, 9), torch.ones(1, 8)), ("padding_mask", "(1, 9)", "(1, 8)")),
        (lambda m: m.encode(noise(1, 9), end_of_stream=True), ("end_of_stream", "state")),
        (lambda m: m.encode(noise(1, 9), torch.ones(1, 9), state=SoundStreamState()), ("padding_mask", "stream")),
        (lambda m: m.decode(torch.zeros(1, 3, dtype=torch.long)), ("audio_codes", "(1, 3)")),
        (lambda m: m.decode(torch.full((1, 1, 2), 32)), ("audio_codes", "0..31", "32")),
        (lambda m: m.decode(torch.zeros(1, 4, 2, dtype=torch.long)), ("audio_codes", "1..3")),
    ],
)
def test_wrong_inputs_are_refused(call, fragments):
    with pytest.raises(ValueError) as error:
        call(build())
    assert_error(error, *fragments)


def test_codecs_that_look_ahead_refuse_streams():
    with pytest.raises(ValueError, match="padding='original'"):
        build(padding="original").encode(noise(1, 9), state=SoundStreamState())
    settled = build(energy_stage="after_quantizer", num_energy_heads=2)
    codes = settled.encode(noise(1, 64), state=SoundStreamState()).audio_codes
    with pytest.raises(ValueError, match="energy_stage='after_quantizer'"):
        settled.decode(codes, SoundStreamState())


@pytest.mark.parametrize(
    ("overrides", "fragment"),
    [
        ({"strides": ()}, "strides"),
        ({"strides": (2, 0)}, "strides"),
        ({"padding": "same"}, "padding must be one of"),
        ({"activation": "snake"}, "activation must be one of"),
        ({"wavelet_blocks": (3,)}, "wavelet_blocks"),
        ({"codebook_size": 1}, "codebook_size"),
        ({"codebook_size": (8, 8)}, "one per level"),
        ({"som_kernel": "soft"}, "som_kernel must be one of"),
        ({"quantizer_dropout": 1.5}, "quantizer_dropout"),
        ({"restart_threshold": 1.0}, "restart_threshold"),
        ({"som_radius": -1.0}, "som_radius"),
        ({"energy_stage": "after_quantizer", "num_energy_heads": 3}, "num_energy_heads"),
    ],
)
def test_wrong_configurations_are_refused(overrides, fragment):
    with pytest.raises(Exception, match=fragment):
        SoundStreamConfig.preset("tiny", **overrides)


def test_a_stride_of_one_keeps_the_rate():
    model = build(strides=(1, 2))
    assert model.encode(noise(1, 32)).audio_codes.shape[-1] == 16


ARGUMENTS = {
    "n_blocks": 2,
    "strides": (2, 3),
    "n_layers_per_block": 2,
    "first_block_channels": 4,
    "num_quantizers": 2,
    "codebook_size": 8,
    "codebook_dim": 6,
    "input_format": "n c l",
}


def original(**arguments) -> SoundStreamModel:
    torch.manual_seed(0)
    return SoundStreamModel.from_original_arguments({**ARGUMENTS, **arguments}).eval()


@pytest.mark.parametrize(
    "arguments",
    [{}, {"vq_type": "ema", "codebook_size": (8, 4)}, {"depthwise": True, "in_channels": 2, "n_layers_per_block": 1}],
    ids=str,
)
def test_originals_come_and_go(arguments, tmp_path):
    model = original(**arguments)
    path = tmp_path / "codec.pt"
    torch.save(model.to_original_state_dict(), path)
    loaded = SoundStreamModel.from_original(path, {**ARGUMENTS, **arguments})
    waveform = torch.randn(1, model.config.audio_channels, 50)
    with torch.no_grad():
        expected, actual = model(waveform), loaded(waveform)
    assert torch.equal(actual.audio_codes, expected.audio_codes)
    torch.testing.assert_close(actual.audio_values, expected.audio_values, rtol=1e-4, atol=1e-5)
    assert all(book.initted for book in loaded.quantizer.codebooks)


class Hostile:
    def __reduce__(self):
        return (print, ("code ran",))


def test_hostile_and_broken_checkpoints_are_refused(tmp_path, capsys):
    weights = original().to_original_state_dict()
    path = tmp_path / "hostile.pt"
    torch.save({**weights, "extra": Hostile()}, path)
    with pytest.raises(ValueError, match="holds more than tensors"):
        SoundStreamModel.from_original(path, ARGUMENTS)
    assert "code ran" not in capsys.readouterr().out
    first = "encoders.0.1.conv.weight_g"
    broken = {
        "unexpected key 'surprise'": {**weights, "surprise": torch.zeros(1)},
        "missing key 'encoders.0.1.conv.weight_g'": {k: v for k, v in weights.items() if k != first},
        "missing key 'decoders.3.conv.bias'": {k: v for k, v in weights.items() if k != "decoders.3.conv.bias"},
        "shape": {**weights, "quantizer.quantizers.0.codebook": torch.zeros(6, 9)},
    }
    for message, state_dict in broken.items():
        with pytest.raises(ValueError, match=message):
            SoundStreamModel.from_original(state_dict, ARGUMENTS)
    refused = {
        "stride": {"stride": 2},
        "one per block": {"n_blocks": 3},
        "input_format": {"input_format": "b l c"},
        "zero_center": {"zero_center": True},
        "use_energy_transformer": {"use_energy_transformer": True},
        "vq_type": {"vq_type": "som"},
    }
    for message, arguments in refused.items():
        with pytest.raises(ValueError, match=message):
            SoundStreamModel.from_original(weights, {**ARGUMENTS, **arguments})
    with pytest.raises(ValueError, match="wavelet_blocks"):
        build(wavelet_blocks=(0,)).to_original_state_dict()


def test_docstrings_run():
    result = doctest.testmod(modeling_soundstream)
    assert result.failed == 0 and result.attempted > 5


def test_borders_of_the_configuration():
    inside, outside = from_one(
        *("sampling_rate", "audio_channels", "base_channels", "channel_multiplier", "kernel_size", "dilation_base"),
        *("hidden_size", "num_quantizers", "num_energy_steps", "num_energy_heads", "codebook_dim"),
    )
    not_negative = ("num_residual_units", "multires_depth", "kmeans_iterations", "reconstruction_weight")
    not_negative += ("commitment_weight", "codebook_weight", "som_radius", "som_shrink")
    inside |= {name: (type(getattr(SoundStreamConfig(), name))(0),) for name in not_negative}
    outside |= {name: (type(getattr(SoundStreamConfig(), name))(-1),) for name in not_negative}
    inside |= {
        "strides": ((1,),),
        "wavelet_blocks": ((0, 2),),
        "multires_kernel_size": ({"multires_depth": 1, "multires_kernel_size": 2}, 1),
        "energy_stage": ({"energy_stage": "before_quantizer", "hidden_size": 8, "num_energy_heads": 4},),
        "codebook_size": (2, (2, 3, 4)),
        "codebook_decay": (0.0, 0.99),
        "restart_threshold": (0.0, 0.99),
        "quantizer_dropout": (0.0, 1.0),
    }
    outside |= {
        "strides": ((), (2, 0), (2.0, 2)),
        "wavelet_blocks": ((3,), (-1,)),
        "multires_kernel_size": ({"multires_depth": 1, "multires_kernel_size": 1},),
        "num_energy_heads": (0, {"energy_stage": "before_quantizer", "hidden_size": 12, "num_energy_heads": 4}),
        "codebook_size": (1, (2, 2, 1), (2, 2)),
        "codebook_decay": (-0.01, 1.0),
        "restart_threshold": (-0.01, 1.0),
        "quantizer_dropout": (-0.01, 1.01),
    }
    check_borders(partial(SoundStreamConfig.preset, "tiny"), inside, outside)
