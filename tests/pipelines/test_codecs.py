"""transformers' codecs where our own goes: the same codes and sounds as their own calls give, in files and back."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel, MimiConfig, MimiModel

from melreformer_hf.models.codec_lm.configuration_codec_lm import CodecLMConfig
from melreformer_hf.models.codec_lm.modeling_codec_lm import CodecLMModel
from melreformer_hf.models.soundstream.configuration_soundstream import SoundStreamConfig
from melreformer_hf.models.soundstream.modeling_soundstream import SoundStreamModel
from melreformer_hf.pipelines.codecs import TransformersCodec, load_codec, load_entropy
from melreformer_hf.pipelines.coding import decode_stream, encode_stream, fingerprint
from melreformer_hf.processing.codec_files import CodecFileReader


def encodec(**changes) -> EncodecModel:
    sizes = {"num_filters": 4, "num_residual_layers": 1, "upsampling_ratios": [4, 2], "hidden_size": 16}
    sizes |= {"codebook_size": 32, "codebook_dim": 16, "target_bandwidths": [5.0, 15.0], "num_lstm_layers": 1}
    model = EncodecModel(EncodecConfig(**{"sampling_rate": 8000, **sizes, **changes}))
    for layer in model.quantizer.layers:
        torch.nn.init.normal_(layer.codebook.embed)
    return model


def dac() -> DacModel:
    sizes = {"encoder_hidden_size": 8, "decoder_hidden_size": 32, "downsampling_ratios": [2, 4], "n_codebooks": 3}
    return DacModel(DacConfig(sampling_rate=8000, codebook_size=32, codebook_dim=4, **sizes))


def mimi() -> MimiModel:
    sizes = {"num_filters": 4, "upsampling_ratios": [4, 2], "hidden_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16, "head_dim": 8}
    sizes |= {"codebook_size": 32, "codebook_dim": 8, "vector_quantization_hidden_dimension": 8, "num_quantizers": 3}
    return MimiModel(MimiConfig(sampling_rate=8000, upsample_groups=16, sliding_window=50, **sizes))


MODELS = {"encodec": encodec, "dac": dac, "mimi": mimi}


@pytest.fixture(params=MODELS)
def codec(request) -> TransformersCodec:
    torch.manual_seed(0)
    return TransformersCodec(MODELS[request.param]().eval())


def sound(samples: int) -> np.ndarray:
    return (0.3 * np.random.default_rng(0).standard_normal(samples)).astype(np.float32)


def own_codes(model, waveform: torch.Tensor) -> torch.Tensor:
    if model.config.model_type == "encodec":
        return model.encode(waveform, bandwidth=15.0).audio_codes[0]
    return model.encode(waveform).audio_codes


@torch.no_grad()
def test_files_hold_the_model_s_own_codes_and_sound(codec):
    model, config = codec.model, codec.config
    samples = 40 * config.hop_length
    waveform, file = sound(samples), io.BytesIO()
    coded = encode_stream(codec, np.split(waveform, [100, 110]), config.sampling_rate, file)
    reader = CodecFileReader(io.BytesIO(file.getvalue()))
    codes, own = torch.cat(list(reader), dim=1), own_codes(model, torch.from_numpy(waveform)[None, None])
    assert torch.equal(codes, own[0, :, :40]) and codes.shape == (config.num_quantizers, 40)
    assert coded.num_samples == samples and reader.header.codebook_sizes == config.codebook_sizes
    made = torch.cat(list(decode_stream(codec, CodecFileReader(io.BytesIO(file.getvalue())))), dim=-1)
    if model.config.model_type == "encodec":
        expected = model.decode(own[None], [None]).audio_values
    elif model.config.model_type == "dac":
        expected = model.decode(audio_codes=own).audio_values[:, None]
    else:
        expected = model.decode(own).audio_values
    shared = min(samples, expected.shape[-1])
    torch.testing.assert_close(made[..., :shared], expected[..., :shared], rtol=1e-4, atol=1e-5)
    assert made.shape == (1, 1, samples)


@pytest.mark.parametrize("samples", (0, 1, 700))
def test_any_length_and_fewer_levels(codec, samples):
    config, file = codec.config, io.BytesIO()
    kbps = config.bandwidth(2)
    encode_stream(codec, [sound(samples)], config.sampling_rate, file, kbps)
    reader = CodecFileReader(io.BytesIO(file.getvalue()))
    made = list(decode_stream(codec, reader))
    assert len(reader.header.codebook_sizes) == 2 == config.quantizers_within(kbps)
    assert sum(part.shape[-1] for part in made) == samples
    with pytest.raises(ValueError, match="bandwidth must be at least"):
        config.quantizers_within(0.01)


def test_a_codec_is_loaded_by_what_it_is(codec, tmp_path):
    codec.model.save_pretrained(tmp_path / "theirs")
    loaded = load_codec(tmp_path / "theirs")
    assert type(loaded.model) is type(codec.model) and loaded.config == codec.config
    assert fingerprint(loaded) == fingerprint(codec)


def test_our_own_and_its_language_model_are_loaded(tmp_path):
    config = SoundStreamConfig.preset("tiny")
    SoundStreamModel(config).save_pretrained(tmp_path)
    assert isinstance(load_codec(tmp_path), SoundStreamModel)
    with pytest.raises(ValueError, match="has no language model to shorten its codes with"):
        load_entropy(tmp_path)
    lm = CodecLMModel(CodecLMConfig.preset("tiny", codebook_size=32)).eval()
    lm.save_pretrained(tmp_path / "entropy")
    assert load_entropy(tmp_path).fingerprint == lm.fixed_point().fingerprint


def test_what_is_no_codec_is_refused(tmp_path):
    with pytest.raises(ValueError, match="codec must be the folder or Hub id of a codec, got"):
        load_codec(tmp_path / "none")
    CodecLMModel(CodecLMConfig.preset("tiny")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of model type 'melreformer_codec_lm'"):
        load_codec(tmp_path)
    with pytest.raises(ValueError, match="model must be one of"):
        TransformersCodec(CodecLMModel(CodecLMConfig.preset("tiny")))
    for changes in ({"normalize": True}, {"chunk_length_s": 1.0, "overlap": 0.01}):
        with pytest.raises(ValueError, match="model must turn a sound into codes alone"):
            TransformersCodec(encodec(**changes))
