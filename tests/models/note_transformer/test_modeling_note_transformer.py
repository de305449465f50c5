"""The note transformer's contract; caching at any length; what it may know of order, time and the future."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from borders import check_borders, from_one
from huggingface_hub.errors import StrictDataclassError
from testing_utils import ModelContractMixin, assert_error

from melreformer_hf.models.note_transformer.blocks_note_transformer import NoteCache, rotary_rates, rotary_table
from melreformer_hf.models.note_transformer.configuration_note_transformer import NoteTransformerConfig
from melreformer_hf.models.note_transformer.modeling_note_transformer import NoteTransformerModel

SIZES = NoteTransformerConfig().vocab_sizes


def build(**overrides) -> NoteTransformerModel:
    torch.manual_seed(0)
    return NoteTransformerModel(NoteTransformerConfig.preset("test", **overrides)).eval()


def score(batch: int, positions: int, seed: int = 1) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    attributes = torch.stack([torch.randint(size, (3, positions), generator=random) for size in SIZES], dim=-1)
    roles = torch.full((3, positions), 2)
    roles[:, 0] = 0
    seconds = torch.rand(3, positions, generator=random).cumsum(1)
    return {"roles": roles[:batch], "attributes": attributes[:batch], "seconds": seconds[:batch]}


class TestNoteTransformerContract(ModelContractMixin):
    model_class = NoteTransformerModel
    main_output = "last_hidden_state"

    def config(self):
        return NoteTransformerConfig.preset("test", dropout=0.0)

    def inputs(self, batch):
        given = score(batch, 9)
        chords = torch.tensor([3, 60, 9, 41]).expand(3, 9, 4)[:batch]
        return {**given, "upcoming": chords, "labels": given["attributes"].clone()}

    @pytest.mark.skipif(
        torch.__version__ < (2, 7), reason="torch 2.6 does not trace a choice of positions by their labels"
    )
    def test_compiles_into_one_graph(self):
        super().test_compiles_into_one_graph()

    @pytest.mark.skipif(
        torch.__version__ < (2, 7), reason="torch 2.6 does not trace a choice of positions by their labels"
    )
    def test_is_exported(self):
        super().test_is_exported()


def contexts(model, given, **kwargs):
    with torch.no_grad():
        return model(**given, **kwargs).last_hidden_state


def test_about_five_million_parameters():
    with torch.device("meta"):
        count = NoteTransformerModel(NoteTransformerConfig.preset("tiny")).num_parameters()
    assert 5.0e6 < count < 6.0e6


@pytest.mark.parametrize("chunks", ([1] * 70, [30, 1, 1, 5, 33], [70]))
def test_cached_equals_uncached_beyond_the_window_at_constant_memory(chunks):
    model, given = build(window=24), score(2, 70)
    cache, made, start = NoteCache(model.config), [], 0
    for size in chunks:
        part = {name: value[:, start : start + size] for name, value in given.items()}
        made.append(contexts(model, part, cache=cache))
        start += size
        assert cache.seen == start and all(keys.shape[2] == 24 for keys in cache.keys)
    torch.testing.assert_close(torch.cat(made, dim=1), contexts(model, given), rtol=0, atol=2e-5)


def test_chords_to_come_are_told_to_their_position_each_number_with_a_row_of_its_own():
    model, given = build(num_hidden_layers=1, window=1), score(1, 5)
    nothing = torch.zeros(1, 5, 4, dtype=torch.long)
    plain = contexts(model, given)
    torch.testing.assert_close(contexts(model, given, upcoming=nothing), plain, rtol=0, atol=0)
    made = []
    for place in range(4):
        told = nothing.clone()
        told[0, 2, place] = 7
        made.append(contexts(model, given, upcoming=told))
        differs = (made[-1] - plain).abs().amax((0, 2)) > 1e-6
        assert differs.tolist() == [False, False, True, False, False]
    assert all((one - other).abs().max() > 1e-6 for one, other in itertools.combinations(made, 2))
    # The largest values that a sequence holds: the longest time, the highest key.
    most = torch.tensor([SIZES[0] - 1, SIZES[1]] * 2).expand(1, 5, 4)
    assert contexts(model, given, upcoming=most).isfinite().all()


def test_no_position_sees_the_future_and_none_sees_beyond_its_window():
    model, given = build(window=6, num_hidden_layers=1), score(1, 20)
    expected = contexts(model, given)
    changed = {**given, "attributes": given["attributes"].clone()}
    changed["attributes"][:, 9] = (changed["attributes"][:, 9] + 1) % 2
    differs = (contexts(model, changed) - expected).abs().amax((0, 2)) > 1e-7
    assert differs.tolist() == [9 <= position < 15 for position in range(20)]


def test_only_differences_of_time_matter():
    model, given = build(initializer_range=0.3), score(2, 12)
    later = {**given, "seconds": given["seconds"] + 64.0}
    torch.testing.assert_close(contexts(model, later), contexts(model, given), rtol=0, atol=2e-3)
    slower = {**given, "seconds": given["seconds"] * 1.5}
    assert (contexts(model, slower) - contexts(model, given)).abs().max() > 1e-2


def test_rotary_codes_turn_with_both_clocks():
    places, seconds = torch.tensor([[0, 1]]), torch.tensor([[0.0, 0.5]])
    rates = rotary_rates(NoteTransformerConfig.preset("test", min_period_in_s=0.1, max_period_in_s=100.0))
    cosine, sine = rotary_table(places, seconds, rates)
    assert cosine.shape == (1, 1, 2, 8)
    assert torch.equal(cosine[0, 0, 0], torch.ones(8)) and torch.equal(sine[0, 0, 0], torch.zeros(8))
    by_place = 2 * math.pi / torch.logspace(math.log10(2.5), 3, 4)
    by_time = 0.5 * 2 * math.pi / torch.logspace(-1, 2, 4)
    torch.testing.assert_close(sine[0, 0, 1], torch.cat([by_place, by_time]).sin())


def test_marks_have_no_attributes():
    model, given = build(), score(1, 5)
    changed = {**given, "attributes": given["attributes"].clone()}
    changed["attributes"][:, 0] = 1
    torch.testing.assert_close(contexts(model, changed), contexts(model, given), rtol=0, atol=0)


def test_loss_is_the_sum_over_attributes_of_what_their_probabilities_say():
    model, given = build(), score(2, 8)
    labels = given["attributes"].clone()
    labels[0, 3] = -100  # nothing to learn
    labels[1, 7, 1:] = -100  # the end has a time alone
    with torch.no_grad():
        output = model(**given, labels=labels)
        told = model.note_log_probabilities(output, labels)
    assert (told[0, 3] == 0).all() and (told[1, 7, 1:] == 0).all()
    counted = (labels != -100).sum((0, 1))
    torch.testing.assert_close(output.attribute_losses, -told.sum((0, 1)) / counted)
    torch.testing.assert_close(output.loss, output.attribute_losses.sum())


def test_an_attribute_knows_those_before_it_and_not_those_after():
    model = build()
    context = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0))
    base = torch.tensor([[[3, 60, 5, 16, 1]]])
    for changed in range(5):
        other = base.clone()
        other[..., changed] = 0 if changed != 4 else 0
        pairs = zip(model.head(context, base), model.head(context, other), strict=True)
        differs = [not torch.equal(first, second) for first, second in pairs]
        assert differs == [index > changed for index in range(5)]


def test_wrong_shapes_are_named():
    model, given = build(), score(2, 4)
    with pytest.raises(ValueError) as error:
        model(given["roles"][0], given["attributes"], given["seconds"])
    assert_error(error, "roles", "(4,)")
    with pytest.raises(ValueError) as error:
        model(given["roles"], given["attributes"][..., :4], given["seconds"])
    assert_error(error, "attributes", "(2, 4, 4)")
    with pytest.raises(ValueError) as error:
        model(given["roles"], given["attributes"], given["seconds"][:1])
    assert_error(error, "seconds", "(1, 4)")
    with pytest.raises(ValueError) as error:
        model(**given, labels=given["roles"])
    assert_error(error, "labels", "(2, 4)")
    with pytest.raises(ValueError) as error:
        model(**given, upcoming=torch.zeros(2, 4, 2, dtype=torch.long))
    assert_error(error, "upcoming", "(2, 4, 2)")


@pytest.mark.parametrize(
    "field, value",
    (
        ("hidden_size", 30),
        ("window", 0),
        ("vocab_sizes", (110,)),
        ("min_period_in_s", 200.0),
        ("dropout", 1.0),
        ("num_marks", 0),
    ),
)
def test_configurations_that_cannot_be_are_refused(field, value):
    with pytest.raises(StrictDataclassError, match=field):
        NoteTransformerConfig.preset("test", **{field: value})


def test_borders_of_the_configuration():
    inside, outside = from_one(
        *("num_hidden_layers", "num_attention_heads", "intermediate_size", "window", "num_marks", "num_note_roles")
    )
    inside |= {
        "hidden_size": ({"hidden_size": 4, "num_attention_heads": 1},),
        "vocab_sizes": ((2, 2),),
        "min_period_in_s": (1e-3, 99.9),
        "dropout": (0.0, 0.99),
        "num_upcoming": (0, 1),
    }
    outside |= {
        "hidden_size": (0, {"hidden_size": 6, "num_attention_heads": 1}),
        "vocab_sizes": ((2,), (2, 1)),
        "min_period_in_s": (0.0, 100.0),
        "dropout": (-0.01, 1.0),
        "num_upcoming": (-1,),
    }
    check_borders(partial(NoteTransformerConfig.preset, "test"), inside, outside)


def test_the_layout_for_single_notes_changes_rounding_only(tmp_path):
    model, given = build(), score(2, 9)
    expected, weights = contexts(model, given), {name: value.clone() for name, value in model.state_dict().items()}
    assert model.lay_out_for_single_notes() is model
    torch.testing.assert_close(contexts(model, given), expected, rtol=0, atol=1e-5)
    assert model.layers[0].attention.qkv_proj.weight.stride() == (1, 96)
    model.save_pretrained(tmp_path)
    loaded = NoteTransformerModel.from_pretrained(tmp_path).state_dict()
    assert loaded.keys() == weights.keys() and all(torch.equal(loaded[name], weights[name]) for name in weights)
