"""The codec language model's contract and properties."""

from __future__ import annotations

import doctest
from functools import partial

import pytest
import torch
from borders import check_borders, from_one
from model_checks import assert_recomputing_changes_nothing
from testing_utils import ModelContractMixin, assert_error

from melreformer_hf.models.codec_lm import fixed_point_codec_lm, modeling_codec_lm
from melreformer_hf.models.codec_lm.blocks_codec_lm import BlockCoder
from melreformer_hf.models.codec_lm.configuration_codec_lm import CodecLMConfig
from melreformer_hf.models.codec_lm.fixed_point_codec_lm import StreamHeader, pack_stream, unpack_stream
from melreformer_hf.models.codec_lm.modeling_codec_lm import CodecLMModel, frame_positions

FRAMES = 40  # several times the context of the tiny preset
VARIANTS = {
    "encodec": {},
    "pre-norm, relu": {"norm_first": True, "activation": "relu", "input_norm": False},
    "frame codes": {"norm_first": True, "frame_code_size": 8},
}


def build(name: str = "encodec", seed: int = 0) -> CodecLMModel:
    torch.manual_seed(seed)
    config = CodecLMConfig.preset("tiny", initializer_range=0.4, **VARIANTS[name])
    return CodecLMModel(config).eval()


def codes(batch: int = 3, frames: int = FRAMES, depth: int = 3) -> torch.Tensor:
    return torch.randint(16, (batch, depth, frames), generator=torch.Generator().manual_seed(1))


def shifted(audio_codes: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(audio_codes[..., :-1], (1, 0), value=-1)


class Contract(ModelContractMixin):
    model_class = CodecLMModel
    main_output = "logits"
    variant: str

    def config(self):
        return CodecLMConfig.preset("tiny", **VARIANTS[self.variant])

    def inputs(self, batch):
        return {"labels": codes(3, 12)[:batch]}

    def steps(self, model):
        with torch.no_grad():
            cache = model(shifted(codes(2, 9)), use_cache=True).past_key_values
        return {"step": (lambda x, past: model(x, past_key_values=past, use_cache=True), (codes(2, 1), cache))}


class TestEncodecContract(Contract):
    variant = "encodec"


class TestPreNormContract(Contract):
    variant = "pre-norm, relu"


class TestFrameCodesContract(Contract):
    variant = "frame codes"

    def steps(self, model):
        def step(x, past):
            return model(x, past_key_values=past, use_cache=True, frame_codes=x)

        with torch.no_grad():
            cache = model(shifted(codes(2, 9)), use_cache=True, frame_codes=codes(2, 9)).past_key_values
        return {"step": (step, (codes(2, 1), cache))}


@pytest.mark.parametrize(("num_quantizers", "count"), [(32, 15_559_768), (8, 5_699_992)])
def test_published_sizes(num_quantizers, count):
    with torch.device("meta"):
        model = CodecLMModel(CodecLMConfig.preset("encodec_24khz", num_quantizers=num_quantizers))
    assert model.num_parameters() == count


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("pieces", [[1] * FRAMES, [3, 1, 20, 16]], ids=["steps", "pieces"])
@torch.no_grad()
def test_cached_equals_the_whole_at_bounded_memory(name, pieces):
    model, inputs = build(name), shifted(codes())
    seen = [{"frame_codes": part} if name == "frame codes" else {} for part in codes().split(pieces, dim=2)]
    whole, cache, parts = model(inputs, labels=codes()).logits, None, []
    for piece, own in zip(inputs.split(pieces, dim=2), seen, strict=True):
        output = model(piece, past_key_values=cache, use_cache=True, **own)
        cache = output.past_key_values
        parts.append(output.logits)
        assert cache.keys[0].shape[2] <= model.config.num_context_frames
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=1e-4, atol=5e-5)


@torch.no_grad()
def test_a_frame_depends_on_the_frames_before_it_only():
    model, audio_codes = build(), codes(1)
    changed = audio_codes.clone()
    changed[:, :, 20] = (changed[:, :, 20] + 1) % 16
    difference = (model(labels=changed).logits - model(labels=audio_codes).logits).abs().amax(dim=(0, 1, 3))
    assert not difference[:21].any() and difference[21] > 1e-3
    reach = model.config.num_context_frames * model.config.num_hidden_layers
    assert difference[21 + reach] > 0 and not difference[22 + reach :].any()


@torch.no_grad()
def test_position_offset_shifts_the_clock():
    model, inputs = build(), shifted(codes())
    both = model(inputs, position_offset=torch.tensor([5, 0, 7])).logits
    torch.testing.assert_close(both[1], model(inputs[1:2]).logits[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(both[2], model(inputs[2:], position_offset=7).logits[0], rtol=1e-5, atol=1e-5)
    assert (both[0] - model(inputs[:1]).logits[0]).abs().max() > 1e-2


@torch.no_grad()
def test_positions_are_exact_at_the_end_of_a_long_stream():
    places = torch.tensor([0, 1, 7, 300, 1_000_000, 2**23 - 1])
    rates = 10000.0 ** (-torch.arange(8, dtype=torch.float64) / 7)
    angles = places.double()[:, None] * rates
    expected = torch.cat([angles.cos(), angles.sin()], dim=-1).float()
    torch.testing.assert_close(frame_positions(places, 16, 10000.0), expected, rtol=0, atol=3e-5)
    torch.testing.assert_close(frame_positions(places[:4], 16, 10000.0), expected[:4], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_dropout_is_drawn_again_when_activations_are_recomputed(name):
    model = build(name)
    for layer in model.layers:
        layer.dropout = layer.attention.dropout = 0.1
    assert_recomputing_changes_nothing(model, {"labels": codes(2, 9)}, lambda output: output.loss)


def test_the_first_codebooks_alone():
    model, audio_codes = build(), codes(depth=2)
    assert model(labels=audio_codes).logits.shape == (3, 2, FRAMES, 16)
    assert torch.equal(torch.stack(model.decompress(model.compress(audio_codes))), audio_codes)


@torch.no_grad()
def test_a_code_sees_the_earlier_ones_of_its_own_frame_and_no_later_ones():
    model, inputs, own = build("frame codes"), shifted(codes()), codes()
    logits = model(inputs, frame_codes=own).logits
    torch.testing.assert_close(model(labels=own).logits, logits)
    for level in range(3):
        other = own.clone()
        other[:, level, 20] = (other[:, level, 20] + 1) % 16
        moved = (model(inputs, frame_codes=other).logits - logits).abs().amax(-1) > 1e-6  # (batch, quantizer, frame)
        expected = torch.zeros_like(moved)
        expected[:, level + 1 :, 20] = True
        assert torch.equal(moved, expected)
    with pytest.raises(ValueError, match="frame_codes .* or labels are required"):
        model(inputs)
    with pytest.raises(ValueError, match="frame_codes must have the shape"):
        model(inputs, frame_codes=own[:, :2])
    with pytest.raises(ValueError, match="frame_codes must be None where config.frame_code_size is 0"):
        build()(inputs, frame_codes=own)


@torch.no_grad()
def test_a_frame_s_codes_by_their_formulas():
    model, own = build("frame codes"), codes(1, 1)
    part, hidden = model.frame_codes, torch.randn(1, 1, 24)
    found = part(hidden, own)
    for level in range(3):
        seen = hidden[0, 0] + part.levels.weight[level]
        for earlier in range(level):
            seen = seen + part.frame_projs[earlier].weight @ part.tables[earlier].weight[own[0, earlier, 0] + 1]
        seen = seen + part.down_proj(torch.nn.functional.gelu(part.up_proj(part.mlp_norm(seen))))
        narrow = part.heads[level](part.output_norm(seen))
        expected = part.tables[level].weight[1:] @ narrow + part.code_bias.weight[level]
        torch.testing.assert_close(found[0, level, 0], expected, rtol=1e-4, atol=1e-5)
    summed = sum(
        part.input_projs[level].weight @ part.tables[level].weight[own[0, level, 0] + 1] for level in range(3)
    )
    torch.testing.assert_close(part.embed(own)[0, 0], summed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["encodec", "frame codes"])
def test_blocks_of_a_stream_come_back_and_depend_on_what_was_before(name):
    model, audio_codes = build(name).fixed_point(), codes(1, 30, 2)[0]
    sender, receiver = BlockCoder(model, 2), BlockCoder(model, 2)
    assert sender.fingerprint == receiver.fingerprint == f"{model.fingerprint:08x}"
    blocks = [audio_codes[:, :9], audio_codes[:, 9:9], audio_codes[:, 9:]]
    sent = [sender.encode(block) for block in blocks]
    for data, block in zip(sent, blocks, strict=True):
        assert torch.equal(receiver.decode(data, block.shape[1]), block)
    assert BlockCoder(model, 2).encode(blocks[2]) != sent[2]
    with pytest.raises(ValueError, match="truncated|corrupt"):
        BlockCoder(model, 2).decode(sent[0][:1], 9)
    with pytest.raises(ValueError, match="bits follow the last symbol"):
        BlockCoder(model, 2).decode(sent[0] + b"x", 9)
    with pytest.raises(ValueError, match=r"codes must be \(2, frame\)"):
        BlockCoder(model, 2).encode(codes(1)[0])
    with pytest.raises(ValueError, match="num_quantizers must be in 1..3, got 4"):
        BlockCoder(model, 4)


def test_ignored_labels_and_learning():
    model, labels = build(), codes(1)
    masked = labels.clone()
    masked[:, :, 30:] = -100
    expected = torch.nn.functional.cross_entropy(
        model(labels=labels).logits[:, :, :30].flatten(0, 2), labels[:, :, :30].flatten()
    )
    torch.testing.assert_close(model(labels=masked).loss, expected)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        model(labels=labels).loss.backward()
        optimizer.step()
    before, after = (len(m.eval().compress(labels)[0]) for m in (build(), model))
    assert after < 0.7 * before


# Coding


@pytest.mark.parametrize("name", VARIANTS)
def test_distributions_are_equal_to_the_bit_however_they_are_computed(name):
    coder, inputs = build(name).fixed_point(), shifted(codes())
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole, _ = coder.cdfs(inputs, None, codes())
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            for pieces in ([1] * FRAMES, [7, 1, 2, 10, 20]):
                state, parts = None, []
                for piece, own in zip(inputs.split(pieces, dim=2), codes().split(pieces, dim=2), strict=True):
                    cdfs, state = coder.cdfs(piece, state, own)
                    parts.append(cdfs)
                assert torch.equal(torch.cat(parts, dim=2), whole)
            for row in range(3):
                alone, _ = coder.cdfs(inputs[row : row + 1], None, codes()[row : row + 1])
                assert torch.equal(alone, whole[row : row + 1])
    finally:
        torch.set_num_threads(threads)


def test_distributions_do_not_depend_on_threads_at_a_large_size():
    """Matrices large enough for the linear algebra to divide among threads; floating arithmetic is no such thing."""
    torch.manual_seed(0)
    config = CodecLMConfig(num_quantizers=2, num_hidden_layers=1, num_context_frames=30)
    model = CodecLMModel(config).eval()
    inputs = shifted(torch.randint(1024, (3, 2, 90)))
    coder, threads, found, floating = model.fixed_point(), torch.get_num_threads(), [], []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(coder.cdfs(inputs)[0])
            with torch.no_grad():
                floating.append(model(inputs).logits)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(coder.cdfs(inputs[1:2, :, :1])[0], found[0][1:2, :, :1])
    with torch.no_grad():
        steps = [model(inputs[1:2, :, :1]).logits, floating[0][1:2, :, :1]]
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_exact_arithmetic_stays_close_to_the_model(name):
    model, inputs = build(name), shifted(codes())
    own = codes() if model.config.frame_code_size else None
    logits, _ = model.fixed_point().logits(inputs, None, own)
    torch.testing.assert_close(logits, model.double()(inputs, frame_codes=own).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["encodec", "frame codes"])
def test_streams_are_the_same_alone_and_in_a_batch_and_decode_in_any_company(name):
    model, audio_codes = build(name), codes()
    streams = model.compress(audio_codes)
    assert [model.compress(row[None])[0] for row in audio_codes] == streams
    short, low = model.compress(audio_codes[:1, :, :11])[0], model.compress(audio_codes[1:2, :1])[0]
    empty = model.compress(audio_codes[:1, :, :0])[0]
    found = model.decompress([streams[2], short, empty, low, streams[0]])
    expected = [audio_codes[2], audio_codes[0, :, :11], audio_codes[0, :, :0], audio_codes[1, :1], audio_codes[0]]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert torch.equal(torch.stack(list(model.stream_decompress(streams[1])), dim=1), audio_codes[1])


@pytest.mark.parametrize("pieces", [[1] * FRAMES, [0, 5, 34, 1]], ids=["steps", "pieces"])
def test_streams_are_the_same_from_any_pieces(pieces):
    model, audio_codes = build(), codes()
    assert model.stream_compress(audio_codes.split(pieces, dim=2)) == model.compress(audio_codes)


def test_long_streams_cross_the_pieces_they_are_computed_in():
    model, audio_codes = build(), codes(1, 150)
    assert torch.equal(model.decompress(model.compress(audio_codes))[0], audio_codes[0])


@pytest.mark.gpu
def test_streams_of_one_device_are_read_on_another():
    model, audio_codes = build(), codes(3, 150)
    streams = model.compress(audio_codes)
    assert model.cuda().compress(audio_codes) == streams
    assert torch.equal(torch.stack(model.decompress(streams)), audio_codes)


def test_size_is_what_the_loss_tells():
    model, audio_codes = build(), codes(1, 200)
    bits = model(labels=audio_codes).loss.item() * audio_codes.numel() / torch.log(torch.tensor(2.0)).item()
    _, payload = unpack_stream(model.compress(audio_codes)[0])
    assert bits - 8 < 8 * len(payload) < 1.002 * bits + 32


def test_a_stream_survives_saving_and_loading(tmp_path):
    model, audio_codes = build(), codes()
    streams = model.compress(audio_codes)
    model.save_pretrained(tmp_path)
    loaded = CodecLMModel.from_pretrained(tmp_path)
    assert torch.equal(torch.stack(loaded.decompress(streams)), audio_codes)


def test_truncated_and_corrupt_streams_are_refused():
    model = build()
    (stream,) = model.compress(codes(1))
    for length in range(len(stream)):
        with pytest.raises(ValueError, match="truncated"):
            model.decompress([stream[:length]])
    for place in range(len(stream)):
        damaged = bytearray(stream)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(ValueError, match="corrupt|truncated|must begin with|of version"):
            model.decompress([bytes(damaged)])
    with pytest.raises(ValueError, match="corrupt"):
        model.decompress([stream + b"\0"])


def test_streams_that_lie_with_a_valid_checksum_are_refused():
    model = build()
    header, payload = unpack_stream(model.compress(codes(1))[0])
    fields = vars(header)
    longer = pack_stream(StreamHeader(**{**fields, "num_frames": header.num_frames + 400}), payload)
    with pytest.raises(ValueError, match="truncated|corrupt"):
        model.decompress([longer])
    shorter = pack_stream(StreamHeader(**{**fields, "num_frames": header.num_frames - 9}), payload)
    with pytest.raises(ValueError, match="follow the last symbol"):
        model.decompress([shorter])
    for change in ({"num_quantizers": 4}, {"num_quantizers": 0}, {"codebook_size": 17}):
        with pytest.raises(ValueError, match="quantizers of"):
            model.decompress([pack_stream(StreamHeader(**{**fields, **change}), payload)])


def test_streams_of_other_weights_are_refused():
    (stream,) = build().compress(codes(1))
    with pytest.raises(ValueError, match="other weights"):
        build(seed=1).decompress([stream])
    with pytest.raises(ValueError, match="other weights"):
        build().bfloat16().decompress([stream])


def test_wrong_codes_are_refused():
    model = build()
    cases = (
        (lambda: model.compress(codes() + 1), "from 0 to 15"),
        (lambda: model.compress(codes(depth=4)), "1 to 3 quantizers"),
        (lambda: model.compress(codes().float()), "float32"),
        (lambda: model.stream_compress([]), "at least one"),
        (lambda: model.stream_compress([codes(), codes(depth=2)]), "Every chunk must be (3, 3, frame)"),
        (lambda: model(codes(depth=4)), "1 to 3 quantizers"),
        (lambda: model(), "labels"),
        (lambda: model(codes(), labels=codes(frames=3)), "labels must have the shape"),
        (lambda: model.decompress(model.compress(codes())[0]), "[stream]"),
    )
    for call, part in cases:
        with pytest.raises(ValueError) as error:
            call()
        assert_error(error, part)
    broken = build()
    with torch.no_grad():
        broken.heads[0].bias[3] = torch.nan
    with pytest.raises(ValueError, match="heads.0.bias"):
        broken.compress(codes())


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"hidden_size": 25}, "hidden_size"),
        ({"activation": "tanh"}, "'tanh'"),
        ({"codebook_size": 1}, "codebook_size"),
        ({"num_context_frames": 0}, "num_context_frames"),
        ({"dropout": 1.0}, "dropout"),
        ({"position_period": 1.0}, "position_period"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps"),
        ({"frame_code_size": -1}, "frame_code_size"),
    ],
)
def test_wrong_configurations_are_refused(arguments, part):
    with pytest.raises(Exception, match=part):
        CodecLMConfig.preset("tiny", **arguments)


def test_borders_of_the_configuration():
    inside, outside = from_one(
        *("num_quantizers", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_context_frames")
    )
    inside |= {
        "hidden_size": ({"hidden_size": 4, "num_attention_heads": 2},),
        "codebook_size": (2, 2**20),
        "dropout": (0.0, 0.99),
        "position_period": (1.01,),
        "layer_norm_eps": (1e-12,),
    }
    outside |= {
        "hidden_size": (
            0,
            22,
            {"hidden_size": 2, "num_attention_heads": 1},
            {"hidden_size": 9, "num_attention_heads": 3},
        ),
        "codebook_size": (1, 2**20 + 1),
        "dropout": (-0.01, 1.0),
        "position_period": (1.0,),
        "layer_norm_eps": (0.0,),
    }
    check_borders(partial(CodecLMConfig.preset, "tiny"), inside, outside)


# Original checkpoints

ARGUMENTS = {"n_q": 2, "card": 8, "dim": 16, "num_layers": 1, "num_heads": 2, "past_context": 5}


def original() -> dict[str, torch.Tensor]:
    config = CodecLMConfig(
        **{"num_quantizers": 2, "codebook_size": 8, "hidden_size": 16, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "intermediate_size": 64, "num_context_frames": 5},
    )
    return CodecLMModel(config).to_original_state_dict()


def test_original_checkpoints_round_trip(tmp_path):
    weights = original()
    torch.save(weights, tmp_path / "lm.th")
    back = CodecLMModel.from_original(tmp_path / "lm.th", ARGUMENTS).to_original_state_dict()
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], value) for key, value in weights.items())


class Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit",))


def test_broken_original_checkpoints_are_refused(tmp_path):
    weights = original()
    missing = {key: value for key, value in weights.items() if key != "linears.1.bias"}
    misshapen = {**weights, "emb.0.weight": torch.zeros(4, 16)}
    unexpected = {**weights, "transformer.extra": torch.zeros(1)}
    cases = (
        (missing, ARGUMENTS, ("missing", "'linears.1.bias'")),
        (misshapen, ARGUMENTS, ("emb.0.weight", "(4, 16)", "(9, 16)")),
        (unexpected, ARGUMENTS, ("unexpected", "transformer.extra")),
        (weights, {**ARGUMENTS, "heads": 3}, ("'heads'", "3")),
    )
    for state_dict, arguments, parts in cases:
        with pytest.raises(ValueError) as error:
            CodecLMModel.from_original(state_dict, arguments)
        assert_error(error, *parts)
    torch.save({"weights": Hostile()}, tmp_path / "hostile.th")
    with pytest.raises(ValueError, match="hostile.th was refused"):
        CodecLMModel.from_original(tmp_path / "hostile.th", ARGUMENTS)


def test_docstring_example():
    results = doctest.testmod(modeling_codec_lm)
    assert results.attempted > 0 and results.failed == 0


def test_values_have_all_the_bits_of_the_context(monkeypatch):
    """Three frames of context and a frame's own are four products in a sum: 52 bits less two, halved, are 25."""
    model = CodecLMModel(CodecLMConfig.preset("tiny", num_context_frames=3)).eval()
    attend, most = fixed_point_codec_lm.attend_integers, []
    monkeypatch.setattr(fixed_point_codec_lm, "attend_integers", lambda *args: most.append(args[-1]) or attend(*args))
    _, state = model.fixed_point().logits(shifted(codes()))
    integers = state.layers[0][2]
    assert 2**24 < integers.abs().max() <= 2**25 and set(most) == {4}
