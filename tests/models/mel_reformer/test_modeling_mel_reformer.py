"""The expansion model keeps the contract, and its streaming, caching and batching change no numbers."""

from __future__ import annotations

import doctest

import pytest
import torch
from borders import check_borders, from_one
from huggingface_hub.errors import StrictDataclassClassValidationError
from mel_reformer_utils import BINS, COLUMNS, random_mels, tiny_config
from testing_utils import ModelContractMixin, assert_error

from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.models.mel_reformer import modeling_mel_reformer
from melreformer_hf.models.mel_reformer.local_mel_reformer import EncodedIdea
from melreformer_hf.models.mel_reformer.modeling_mel_reformer import MelReformerModel
from melreformer_hf.models.mel_reformer.timing_mel_reformer import interpolate_idea


def make_model(**overrides) -> MelReformerModel:
    torch.manual_seed(0)
    return MelReformerModel(tiny_config(**overrides)).eval()


class TestLocal(ModelContractMixin):
    model_class = MelReformerModel
    main_output = "output_features"

    def config(self):
        return tiny_config()

    def inputs(self, batch):
        mels = random_mels(batch, 50)
        frames = torch.tensor([50, 37, 44])[:batch]
        return {"input_features": resize_mel(mels, COLUMNS), "num_frames": frames, "labels": mels}

    def steps(self, model):
        expansion, frames = model.expansion, torch.tensor([50, 37])
        with torch.no_grad():
            encoded = expansion.encode(resize_mel(random_mels(2, 50), COLUMNS), frames)
            previous = torch.zeros(2, 1, self.config().num_mel_bins * expansion.fold_size)
            _, _, caches = expansion.decoder(previous, encoded, torch.zeros_like(frames))
        count = len(caches)

        def window(previous, start_frames, idea, states, coefficients, num_frames, *parts):
            memories, keys, values = parts[:count], parts[count : 2 * count], parts[2 * count :]
            idea = EncodedIdea(idea, states, list(memories), num_frames, coefficients)
            return expansion.decoder(previous, idea, start_frames, 1, list(zip(keys, values, strict=True)))

        held = [*encoded.memories, *(key for key, _ in caches), *(value for _, value in caches)]
        fields = (encoded.idea, encoded.states, encoded.coefficients, frames)
        made = torch.randn(2, self.config().num_mel_bins, 30)
        return {
            "encoder": (expansion.encoder, (encoded.idea, frames)),
            "window": (window, (previous, torch.full_like(frames, expansion.fold_size), *fields, *held)),
            "postnet": (expansion.postnet, (made, made + 1, torch.ones(2, 1, 30))),
        }


class TestOriginal(ModelContractMixin):
    model_class = MelReformerModel
    main_output = "output_features"
    # The last window is never told to the decoder, and softmax does not see a bias that all keys share.
    frozen = tuple(
        f"expansion.{side}_layers.{i}.{kind}.key.bias"
        for i in range(2)
        for side, kind in (("encoder", "attention"), ("decoder", "self_attention"), ("decoder", "cross_attention"))
    )

    def config(self):
        return tiny_config(architecture="original", decoder_window=16, dropout=0.0)

    def inputs(self, batch):
        mels = random_mels(batch, 48)
        return {"input_features": mels, "num_frames": torch.full((batch,), 48), "labels": mels}

    def steps(self, model):
        tokens = torch.randn(2, 3, self.config().num_mel_bins * self.config().fold_size)
        with torch.no_grad():
            memory = model.expansion.encode(random_mels(2, 48))
        return {"window": (model.expansion.decode, (tokens, memory))}


@pytest.mark.parametrize("frames", [1, 3, 4, 5, 23, 24, 61])
def test_any_length_and_stream_equals_generate(frames):
    model = make_model()
    idea, length = random_mels(1, COLUMNS), torch.tensor([frames])
    whole = model.generate(idea, length)
    assert whole.shape == (1, BINS, frames)
    for chunk in (1, 7, 1000):
        pieces = list(model.stream(idea, length, chunk_frames=chunk))
        torch.testing.assert_close(torch.cat(pieces, dim=-1), whole, rtol=0, atol=1e-4)


def test_batch_of_different_lengths_equals_single_rows():
    model = make_model()
    ideas, lengths = random_mels(3, COLUMNS), torch.tensor([45, 8, 130])
    together = model.generate(ideas, lengths)
    for row in range(3):
        alone = model.generate(ideas[row : row + 1], lengths[row : row + 1])
        torch.testing.assert_close(together[row : row + 1, :, : lengths[row]], alone, rtol=0, atol=1e-4)
        assert (together[row, :, lengths[row] :] == model.config.mel_config.floor_value).all()


def test_cached_generation_equals_uncached_teacher_forcing_on_its_own_output():
    model = make_model()
    idea, length = random_mels(2, COLUMNS), torch.tensor([90, 70])
    windows = []
    with torch.no_grad():
        state = model.expansion.begin(model.expansion.encode(model._normalize(idea), length))
        while state.step * model.config.fold_size < state.longest:
            window, state = model.expansion.decode(state)
            windows.append(window)
        windows = torch.cat(windows, dim=-1)
        told = model._denormalize(windows[:, :BINS])
        uncached = model(idea, length, decoder_input_features=told)
    torch.testing.assert_close(uncached.decoder_features, told, rtol=0, atol=1e-4)
    generated = model.generate(idea, length)
    torch.testing.assert_close(uncached.output_features[0], generated[0], rtol=0, atol=1e-4)


def test_the_decoder_is_causal_and_the_seam_net_looks_ahead_as_far_as_it_says():
    model = make_model()
    idea, length, told = random_mels(1, COLUMNS), torch.tensor([80]), random_mels(1, 80)
    changed = told.clone()
    changed[..., 40:] += 1.0
    with torch.no_grad():
        before, after = (model(idea, length, decoder_input_features=x) for x in (told, changed))
    difference = (before.decoder_features - after.decoder_features).abs().amax((0, 1))
    assert (difference[:44] == 0).all() and difference[44:48].any()
    difference = (before.output_features - after.output_features).abs().amax((0, 1))
    assert (difference[: 44 - model.expansion.postnet.reach] == 0).all()


def test_a_stretch_equals_the_same_stretch_of_the_whole_piece():
    model = make_model(decoder_window=3)
    length, told = torch.tensor([200]), random_mels(1, 200)
    idea = resize_mel(told, COLUMNS)
    with torch.no_grad():
        whole = model(idea, length, decoder_input_features=told)
        start = 80
        part = model(
            idea,
            length,
            decoder_input_features=told[..., start:],
            start_frames=torch.tensor([start]),
            previous_features=told[..., start - 4 : start],
        )
    warm = 2 * 3 * 4  # two layers that each see three steps of four frames back
    expected = whole.decoder_features[..., start + warm :]
    torch.testing.assert_close(part.decoder_features[..., warm:], expected, rtol=0, atol=1e-4)


def test_memory_does_not_grow_with_length():
    model = make_model()
    idea = random_mels(1, COLUMNS)
    sizes = {}
    original = type(model.expansion.decoder).forward
    for frames in (100, 1000):
        largest = 0

        def spy(decoder, *args, **kwargs):
            nonlocal largest
            made, base, caches = original(decoder, *args, **kwargs)
            largest = max(largest, sum(tensor.numel() for cache in caches for tensor in cache))
            return made, base, caches

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model.expansion.decoder), "forward", spy)
            pieces = [piece.shape[-1] for piece in model.stream(idea, torch.tensor([frames]), chunk_frames=8)]
        sizes[frames] = largest
        assert max(pieces) <= 8 + model.config.fold_size + model.expansion.postnet.reach  # the last is the longest
    assert sizes[100] == sizes[1000]


def test_untrained_model_is_the_reinterpolated_idea_plus_a_small_change():
    model = make_model(initializer_range=1e-6)
    mel = random_mels(1, 120)
    idea = resize_mel(mel, COLUMNS)
    expected = resize_mel(idea, 120)
    torch.testing.assert_close(model.generate(idea, torch.tensor([120])), expected, rtol=0, atol=1e-2)


def test_interpolation_on_the_time_axis_equals_resizing():
    mel = random_mels(2, COLUMNS)
    length = torch.tensor([100, 100])
    expected = resize_mel(mel, 100)
    for start in (0, 17):
        part = interpolate_idea(mel, torch.full((2,), start), 30, length)
        torch.testing.assert_close(part, expected[..., start : start + 30], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("lengths", "fragment"), [([0], "at least 1"), ([-5], "-5"), ([1.5], "integer"), ([3, 4], "per idea")]
)
def test_absurd_lengths_are_refused(lengths, fragment):
    with pytest.raises(ValueError, match=fragment):
        make_model().generate(random_mels(1, COLUMNS), torch.tensor(lengths))


def test_wrong_ideas_are_refused():
    with pytest.raises(ValueError) as error:
        make_model().generate(random_mels(1, COLUMNS + 1), torch.tensor([10]))
    assert_error(error, "input_features", str(COLUMNS), str(COLUMNS + 1))


@pytest.mark.parametrize(
    ("field", "value"), [("architecture", "rnn"), ("fold_size", 0), ("num_attention_heads", 5), ("postnet_kernel", 4)]
)
def test_broken_config_rules(field, value):
    with pytest.raises(StrictDataclassClassValidationError, match=field):
        tiny_config(**{field: value})


def test_original_checkpoints_are_refused_by_key():
    arguments = {"n_mels": 4, "window_size": 2, "num_blocks": 1, "num_heads": 2, "dim_embed": 8}
    arguments |= {"encoder_block_size": 8, "decoder_block_size": 4}
    state = MelReformerModel.from_original_arguments(arguments).to_original_state_dict()
    broken = {key: value for key, value in state.items() if key != "head.bias"}
    for changed, fragments in (
        (broken, ("missing key", "'head.bias'")),
        ({**state, "tail": torch.zeros(1)}, ("unexpected key", "tail")),
        ({**state, "head.weight": torch.zeros(3, 3)}, ("'head.weight'", "(3, 3)")),
    ):
        with pytest.raises(ValueError) as error:
            MelReformerModel.from_original(changed, arguments)
        assert_error(error, *fragments)
    with pytest.raises(ValueError, match="dim_embd"):
        MelReformerModel.from_original(state, {"dim_embd": 3})


def test_docstring_example():
    results = doctest.testmod(modeling_mel_reformer)
    assert results.attempted and not results.failed


def test_borders_of_the_configuration():
    inside, outside = from_one(
        *("idea_columns", "fold_size", "intermediate_size", "num_encoder_layers"),
        *("num_attention_heads", "decoder_window", "postnet_size", "postnet_layers", "band_blocks", "num_bases"),
        *("head_size", "head_layers", "head_noise", "flow_steps"),
    )
    not_negative = ("num_decoder_layers", "encoder_window", "cross_reach", "context_frames", "head_column_noise")
    inside |= dict.fromkeys(not_negative, (0,)) | {
        "hidden_size": ({"hidden_size": 2, "num_attention_heads": 1},),
        "band_channels": ((1,),),
        "frames_per_column": ((0.1, 0.1),),
        "postnet_kernel": (1,),
        "head": ("l1", "energy", "flow"),
        "head_kernel": (1,),
        "head_dilations": ((1,), (3, 1)),
        "energy_patches": (((1, 1),),),
        "dropout": (0.0,),
        "mel_scale": (1e-3,),
    }
    outside |= dict.fromkeys(not_negative, (-1,)) | {
        "hidden_size": (0, {"hidden_size": 6, "num_attention_heads": 2}),
        "band_channels": ((), (4, 0)),
        "frames_per_column": ((0.0, 1.0), (2.0, 1.0), (1.0, float("inf")), (1.0,), (1.0, 2.0, 3.0)),
        "postnet_kernel": (0, 2, -1),
        "head": ("l2", {"head": "energy", "architecture": "original"}),
        "head_kernel": (0, 2, -1),
        "head_dilations": ((), (1, 0)),
        "energy_patches": ((), ((0, 1),), ((1, 0),), ((1,),)),
        "dropout": (-0.1,),
        "mel_scale": (0.0,),
    }
    check_borders(tiny_config, inside, outside)
