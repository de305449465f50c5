"""Every head keeps the contract; what samples is decided by its seed, whatever the chunks and the batch."""

from __future__ import annotations

import pytest
import torch
from mel_reformer_utils import BINS, COLUMNS, random_mels, tiny_config
from testing_utils import ModelContractMixin, assert_error

from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.models.mel_reformer.heads_mel_reformer import EnergyHead, FlowHead, HeadInputs
from melreformer_hf.models.mel_reformer.modeling_mel_reformer import MelReformerModel
from melreformer_hf.nn.energy_score import energy_score

SAMPLERS = {"head_size": 16, "head_layers": 2, "head_kernel": 5, "head_dilations": (1, 2), "head_noise": 3}
SAMPLERS |= {"energy_patches": ((4, 2), (12, 4)), "flow_steps": 3}
FIELD = {"num_decoder_layers": 0, "head_column_noise": 2}
CASES = {
    "energy": {"head": "energy"},
    "flow": {"head": "flow"},
    "field energy": {"head": "energy", **FIELD},
    "field flow": {"head": "flow", "num_decoder_layers": 0},
    "field l1": {"head": "l1", "num_decoder_layers": 0},
}
DRAWING = [name for name in CASES if name != "field l1"]


def config_of(name: str, **overrides):
    return tiny_config(**{**SAMPLERS, **CASES[name], **overrides})


def make_model(name: str, **overrides) -> MelReformerModel:
    torch.manual_seed(0)
    model = MelReformerModel(config_of(name, **overrides)).eval()
    stir(model)
    return model


def stir(model: MelReformerModel) -> None:
    """The last layers of sampling heads begin at zero, with which nothing could be seen."""
    if model.samples:
        with torch.no_grad():
            model.expansion.sampler.net.out.weight.normal_(std=0.3)


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(50 + row) for row in range(count)]


class HeadContract(ModelContractMixin):
    model_class = MelReformerModel
    main_output = "output_features"
    case: str

    def config(self):
        return config_of(self.case)

    def model(self):
        model = super().model()
        stir(model)
        return model

    def inputs(self, batch):
        mels, frames = random_mels(batch, 50), torch.tensor([50, 37, 44])[:batch]
        inputs = {"input_features": resize_mel(mels, COLUMNS), "num_frames": frames, "labels": mels}
        model = MelReformerModel(self.config())
        if model.samples:
            seeds = torch.arange(2 * batch).reshape(batch, 2)
            inputs["noise"] = model.draw_noise(seeds, frames, torch.zeros_like(frames), 50)
        return inputs

    def steps(self, model):
        expansion, frames = model.expansion, torch.tensor([50, 37])
        with torch.no_grad():
            encoded = expansion.encode(resize_mel(random_mels(2, 50), COLUMNS), frames)
            if expansion.has_decoder:
                previous = torch.randn(2, 3, BINS * expansion.fold_size)
                made, _, hidden, _ = expansion.decoder.think(previous, encoded, torch.zeros_like(frames))
                inputs = expansion.window_inputs(encoded, previous, made, hidden, torch.zeros_like(frames))
            else:
                inputs = expansion.field_inputs(encoded, torch.zeros_like(frames), 30)
        channels = getattr(expansion.head, "num_noise", 1)
        noise = torch.randn(len(inputs.mean), channels, inputs.features.shape[-1])
        fields = (inputs.mean, inputs.fields, inputs.features, inputs.inside, inputs.open)
        return {"head": (lambda noise, *parts: expansion.head.sample(HeadInputs(*parts), noise), (noise, *fields))}


class TestEnergy(HeadContract):
    case = "energy"


class TestFlow(HeadContract):
    case = "flow"


class TestFieldEnergy(HeadContract):
    case = "field energy"


class TestFieldFlow(HeadContract):
    case = "field flow"


class TestFieldL1(HeadContract):
    case = "field l1"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("frames", [1, 3, 4, 5, 61, 400])
def test_stream_equals_generate_whatever_the_chunks(name, frames):
    model, idea, length = make_model(name), random_mels(1, COLUMNS), torch.tensor([frames])
    whole = model.generate(idea, length, generator=generators(1))
    assert whole.shape == (1, BINS, frames)
    for chunk in (1, 7, 1000):
        pieces = list(model.stream(idea, length, chunk_frames=chunk, generator=generators(1)))
        torch.testing.assert_close(torch.cat(pieces, dim=-1), whole, rtol=0, atol=1e-4)
    if frames == 400:
        assert len(list(model.stream(idea, length, chunk_frames=1, generator=generators(1)))) > 2


@pytest.mark.parametrize("name", CASES)
def test_batch_equals_single_rows(name):
    model, ideas, lengths = make_model(name), random_mels(3, COLUMNS), torch.tensor([45, 8, 130])
    together = model.generate(ideas, lengths, generator=generators(3))
    for row, generator in enumerate(generators(3)):
        alone = model.generate(ideas[row : row + 1], lengths[row : row + 1], generator=generator)
        torch.testing.assert_close(together[row : row + 1, :, : lengths[row]], alone, rtol=0, atol=1e-4)
        assert (together[row, :, lengths[row] :] == model.config.mel_config.floor_value).all()


@pytest.mark.parametrize("name", DRAWING)
def test_seeds_decide_and_temperature_scales(name):
    model, idea, length = make_model(name), random_mels(1, COLUMNS), torch.tensor([80])

    def made(seed: int, temperature: float = 1.0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return model.generate(idea, length, generator=generator, temperature=temperature)

    assert torch.equal(made(1), made(1))
    assert not torch.allclose(made(1), made(2), atol=1e-2)
    assert torch.equal(made(1, 0.0), made(2, 0.0))
    apart = [(made(1, temperature) - made(2, temperature)).abs().mean().item() for temperature in (0.2, 1.0)]
    assert 0 < apart[0] < apart[1]
    for temperature in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ValueError) as error:
            made(1, temperature)
        assert_error(error, "temperature", "at least 0", str(temperature))


@pytest.mark.parametrize("name", ["energy", "field energy"])
def test_temperature_0_is_the_draw_without_noise(name):
    model, idea, length = make_model(name), random_mels(1, COLUMNS), torch.tensor([48])
    made = model.generate(idea, length, temperature=0.0)
    with torch.no_grad():
        told = model(idea, length, decoder_input_features=made, noise=None).output_features
    torch.testing.assert_close(told, made, rtol=0, atol=1e-4)


def test_the_noise_of_long_pieces_is_scaled_by_a_temperature_of_their_own():
    plain, cool = make_model("field energy"), make_model("field energy", head_long_temperature=0.25)
    # Frames per column: below 8, 8, the middle of 8 and 64 in octaves, 64, and more.
    lengths = torch.tensor([round(frames * COLUMNS) for frames in (4, 8, 8 * 2**1.5, 64, 90)])
    encoded = cool.expansion.encode(random_mels(5, COLUMNS), lengths)
    scales = cool.expansion.begin(encoded, temperature=2.0).temperature.flatten()
    torch.testing.assert_close(scales, 2.0 * torch.tensor([1.0, 1.0, 0.5, 0.25, 0.25]), rtol=1e-3, atol=0)
    idea, frames = random_mels(1, COLUMNS), torch.tensor([64 * COLUMNS])
    own, other, told = (
        model.generate(idea, frames, generator=generators(1), temperature=temperature)
        for model, temperature in ((cool, 1.0), (plain, 1.0), (plain, 0.25))
    )
    torch.testing.assert_close(own, told, rtol=0, atol=1e-4)
    assert (own - other).abs().max() > 0.02


def test_heads_without_noise_ask_for_none():
    model, idea = make_model("field l1"), random_mels(1, COLUMNS)
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    model.generate(idea, torch.tensor([20]), generator=generator)
    assert torch.equal(generator.get_state(), before)
    with pytest.raises(ValueError) as error:
        model.generate(idea, torch.tensor([20]), temperature=0.5)
    assert_error(error, "temperature", "'l1'", "0.5")
    with pytest.raises(ValueError, match="noise must be None"):
        model(idea, torch.tensor([20]), labels=random_mels(1, 20), noise=torch.zeros(1, 1, 1, 5))


@pytest.mark.parametrize("name", DRAWING)
def test_free_running_is_what_training_sees_of_its_own_past(name):
    """Teacher forcing on a draw, with the draw's noise, makes the draw again."""
    model, idea, length = make_model(name), random_mels(2, COLUMNS), torch.tensor([50, 33])
    seeds = torch.tensor([7, 8])
    with torch.no_grad():
        state, pieces = None, []
        while state is None or state.emitted < 50:
            more = {} if state is not None else {"seeds": seeds}
            output = model(idea, length, chunk_frames=1000, generation_state=state, **more)
            state = output.generation_state
            pieces.append(output.output_features)
        free = torch.cat(pieces, dim=-1)
        told = free.masked_fill(torch.arange(50) >= length[:, None, None], model._denormalize(torch.zeros(())).item())
        noise = model.draw_noise(seeds[:, None], length, torch.zeros_like(length), 50)
        forced = model(idea, length, decoder_input_features=told, noise=noise).output_features
    for row, frames in enumerate(length.tolist()):
        torch.testing.assert_close(forced[row, :, :frames], free[row, :, :frames], rtol=0, atol=1e-4)


def test_parts_without_parameters_of_their_own_get_their_initial_values():
    torch.manual_seed(0)
    model = MelReformerModel(config_of("field energy", initializer_range=1e-6))
    net, curves = model.expansion.sampler.net, model.expansion.decoder.curves.curves[0]
    assert not net.out.weight.any() and net.told.weight.std() > 0.05 and curves.weight.std() > 0.05
    assert net.blocks[0].up.weight.std() < 1e-5


@pytest.mark.parametrize("name", DRAWING)
def test_an_untrained_head_leaves_the_columns_as_they_are(name):
    torch.manual_seed(0)
    model = MelReformerModel(config_of(name)).eval()
    idea, length = random_mels(1, COLUMNS), torch.tensor([60])
    noise = model.draw_noise(torch.tensor([[3]]), length, torch.tensor([0]), 60)
    with torch.no_grad():
        output = model(idea, length, decoder_input_features=random_mels(1, 60), noise=noise)
    torch.testing.assert_close(output.output_features, output.decoder_features, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["energy", "field energy"])
def test_loss_is_the_energy_score_of_the_draws(name):
    model, frames, starts = make_model(name), torch.tensor([120, 60]), torch.tensor([20, 32])
    mels = random_mels(2, 124)
    idea, size = resize_mel(mels, COLUMNS), model.config.fold_size
    labels = mels[..., size : size + 40]
    noise = model.draw_noise(torch.arange(6).reshape(2, 3), frames, starts, 40)
    given = {"start_frames": starts, "previous_features": mels[..., :size]}
    with torch.no_grad():
        output = model(idea, frames, labels, noise=noise, **given)
        draws = [model(idea, frames, labels, noise=noise[:, i : i + 1], **given).output_features for i in range(3)]
    assert torch.equal(output.output_features, draws[0])
    inside = (starts[:, None] + torch.arange(40) < frames[:, None])[:, None].float()
    draws = torch.stack(draws, 1)
    if name == "energy":  # windows of their own, each behind the one that it was told
        told, before = torch.cat([mels[..., :size], labels[..., :-size]], dim=-1), starts - size

        def windows(past: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
            both = torch.cat([part.unflatten(-1, (10, size)) for part in (past, new)], dim=-1)
            return both.movedim(-2, 1).flatten(0, 1)

        drawn = torch.stack([windows(told, draw) for draw in draws.unbind(1)], 1)
        counted = windows((before[:, None] + torch.arange(40) < frames[:, None])[:, None].float(), inside)
        target = windows(told, labels)
    else:
        drawn, target, counted = draws, labels, inside
    scores = energy_score(drawn / 3, target / 3, counted, model.config.energy_patches)
    shares = counted.sum((1, 2)) / counted.sum()
    error = [
        ((mel - labels).abs() * inside).sum() / (inside.sum() * BINS) / 2
        for mel in (output.encoder_features, output.decoder_features)
    ]
    expected = 3 * (scores * shares).sum() + sum(error[: 1 + (name == "energy")])
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-4)


def some_inputs() -> tuple[HeadInputs, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mean, fields, features = (torch.randn(2, size, 12, generator=generator) for size in (BINS, 5, 4))
    inside = torch.ones(2, 1, 12)
    inside[1, :, 8:] = 0
    inputs = HeadInputs(mean, fields, features[..., :3], inside, (torch.arange(12) >= 4).float().expand(2, 1, -1))
    return inputs, torch.randn(2, BINS, 12, generator=generator), torch.randn(2, 2, BINS * 4, 3, generator=generator)


def test_what_was_made_before_stays_as_it_is():
    inputs, _, noise = some_inputs()
    for kind, head in (("energy", EnergyHead), ("flow", FlowHead)):
        head = head(config_of(kind), 4, 5, 4)
        torch.nn.init.normal_(head.net.out.weight)
        made = head.sample(inputs, noise[:, 0, : head.num_noise])
        assert torch.equal(made[..., :4], inputs.mean[..., :4])
        assert not torch.allclose(made[..., 4:8], inputs.mean[..., 4:8], atol=1e-2)


def test_flow_loss_is_the_error_of_the_direction():
    inputs, target, noise = some_inputs()
    head = FlowHead(config_of("flow"), 4, 5, 4)
    torch.nn.init.normal_(head.net.out.weight, std=0.1)
    loss, _ = head.loss(inputs, target, inputs.inside, noise)
    total = 0.0
    for row in range(2):
        one = HeadInputs(
            *(getattr(inputs, name)[row : row + 1] for name in ("mean", "fields", "features", "inside", "open"))
        )
        for draw in range(2):
            wanted = (target[row] - one.mean[0]) / 0.15
            time = torch.special.ndtr(noise[row, draw, 0, 0])
            # Channels of a token are (mel, frame of the token).
            start = noise[row, draw].reshape(BINS, 4, 3).transpose(1, 2).flatten(1) * one.open[0]
            place = (1 - time) * start + time * wanted
            end = head.end(one, place[None], time[None])[0]
            error = ((end - place) / (1 - time) - (wanted - place) / (1 - time)).square()
            assert time < 0.9  # nearer to the end errors are not divided by the time that is left
            total = total + (error * one.inside[0]).sum() / (inputs.inside.sum() * 2 * BINS)
    torch.testing.assert_close(loss, total, rtol=1e-4, atol=1e-5)


def test_flow_arrives_where_it_says_that_it_leads():
    inputs, _, noise = some_inputs()
    head, goal = FlowHead(config_of("flow"), 4, 5, 4), torch.randn(2, BINS, 12)
    head.end = lambda inputs, place, time: goal
    torch.testing.assert_close(head.sample(inputs, noise[:, 0]), inputs.mean + 0.15 * goal)


@pytest.mark.parametrize("name", ["field energy", "field flow", "field l1"])
def test_reach_is_how_far_a_frame_looks(name):
    model, frames = make_model(name), 600
    expansion, length = model.expansion, torch.tensor([frames])
    reach = -(-expansion.head.reach // model.config.fold_size) * model.config.fold_size
    with torch.no_grad():
        encoded = expansion.encode(random_mels(1, COLUMNS) / 3, length)
        inputs = expansion.field_inputs(encoded, torch.tensor([0]), frames)
        noise = torch.randn(1, getattr(expansion.head, "num_noise", 1), frames // 4)
        before = expansion.head.sample(inputs, noise)
        inputs.fields = inputs.fields.clone()
        inputs.fields[..., 300] += 1
        changed = (expansion.head.sample(inputs, noise) - before).abs().amax((0, 1)).nonzero().flatten()
    assert 300 - reach <= changed.min() < 300 < changed.max() <= 300 + reach
    assert changed.max() - changed.min() > reach / 2  # not much more than needed is computed anew


def test_memory_does_not_grow_with_length():
    model, sizes = make_model("field energy"), {}
    for frames in (400, 2000):
        pieces = list(model.stream(random_mels(1, COLUMNS), torch.tensor([frames]), chunk_frames=8))
        sizes[frames] = max(piece.shape[-1] for piece in pieces)
    assert sizes[400] == sizes[2000] <= 2 * model.expansion.head.reach + 4


def test_noise_of_a_column_is_the_same_in_all_of_its_frames():
    model, length = make_model("field energy"), torch.tensor([COLUMNS * 16])
    noise = model.draw_noise(torch.tensor([[3]]), length, torch.tensor([0]), COLUMNS * 16)[0, 0, -2:]
    columns = noise.unflatten(1, (COLUMNS, 4))  # four tokens of four frames
    assert torch.equal(columns, columns[..., :1].expand_as(columns))
    assert len(columns[0, :, 0].unique()) == COLUMNS
    later = model.draw_noise(torch.tensor([[3]]), length, torch.tensor([160]), 64)[0, 0, -2:]
    assert torch.equal(later, noise[:, 40:56])


@pytest.mark.parametrize("name", ["energy", "field energy"])
def test_several_stretches_of_a_piece_cost_one_encoding(name):
    model, frames, calls = make_model(name), torch.tensor([90, 70]), []
    ideas, labels, starts = random_mels(2, COLUMNS), random_mels(4, 20), torch.tensor([0, 40, 8, 30])
    rows = (ideas.repeat_interleave(2, 0), frames.repeat_interleave(2))
    noise = model.draw_noise(torch.arange(8).reshape(4, 2), rows[1], starts, 20)
    model.expansion.encoder.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    with torch.no_grad():
        together = model(ideas, frames, labels, noise=noise, start_frames=starts)
        apart = model(*rows, labels, noise=noise, start_frames=starts)
    assert calls == [2, 4]
    torch.testing.assert_close(together.loss, apart.loss)
    torch.testing.assert_close(together.output_features, apart.output_features, rtol=1e-4, atol=1e-4)


def test_what_the_head_is_told_can_differ_from_what_the_decoder_is_told():
    model, frames = make_model("energy"), torch.tensor([40])
    idea, told = random_mels(1, COLUMNS), random_mels(1, 40)
    heard = torch.cat([model._denormalize(torch.full((1, BINS, 4), model.expansion.silence)), told], dim=-1)
    with torch.no_grad():
        plain = model(idea, frames, decoder_input_features=told).output_features
        same = model(idea, frames, decoder_input_features=told, heard_features=heard)
        other = model(idea, frames, decoder_input_features=told, heard_features=heard + 1)
    torch.testing.assert_close(same.output_features, plain)
    assert not torch.allclose(other.output_features, plain, rtol=0, atol=1e-4)
    torch.testing.assert_close(other.decoder_features, same.decoder_features)
    with pytest.raises(ValueError, match="heard_features must have shape"):
        model(idea, frames, decoder_input_features=told, heard_features=told)
    with pytest.raises(ValueError, match="None without a sampling head"):
        make_model("field energy")(idea, frames, labels=told, heard_features=heard)


def test_configurations_from_before_there_were_heads_mean_the_l1_head():
    old = tiny_config().to_dict()
    for name in [key for key in old if key.startswith(("head", "energy", "flow"))]:
        del old[name]
    model = MelReformerModel(type(tiny_config()).from_dict(old))
    assert model.config.head == "l1" and hasattr(model.expansion, "postnet") and not model.samples


def test_noise_of_another_shape_is_refused():
    model, frames = make_model("field energy"), torch.tensor([40])
    idea, labels = random_mels(1, COLUMNS), random_mels(1, 40)
    good = model.draw_noise(torch.tensor([[1, 2]]), frames, torch.tensor([0]), 40)
    for noise in (good[0], good[:, :, 1:], good[..., 1:], good[:, :0]):
        with pytest.raises(ValueError, match="noise must be"):
            model(idea, frames, labels, noise=noise)
