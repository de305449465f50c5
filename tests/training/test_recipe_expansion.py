"""The expansion recipe: what every option of samplers, of the adversarial finish and of the original means."""

from __future__ import annotations

import pytest
import torch
from testing_utils import assert_error
from training_utils import context, started

from melreformer_hf.data.batches import BatchStream
from melreformer_hf.models.mel_reformer.modeling_mel_reformer import MelReformerModel
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.initialization import load_pretrained
from melreformer_hf.training.main import main
from melreformer_hf.training.recipes.expansion import ExpansionRecipe
from melreformer_hf.training.reporting import read_metrics

COMMON = """--save_every_minutes none --log_every_steps 1 --warmup_steps 2 --progress_bar false --cpu true --optimizer muon
--batch_size 2 --num_workers 1 --validate_every_steps 2 --options.min_frames 128 --options.max_frames 512
--options.window_frames 32 --options.validation_crops 1 --options.validation_crop_frames 128
--options.validation_pieces 1 --model.idea_columns 32 --model.hidden_size 16 --model.intermediate_size 24
--model.num_encoder_layers 1 --model.num_decoder_layers 1 --model.num_attention_heads 2 --model.postnet_size 8
--model.postnet_layers 1""".split()
HEAD = "--model.head_size 16 --model.head_layers 1 --model.head_noise 2 --options.windows_per_crop 2".split()
ENERGY = [*HEAD, *"--model.head energy --options.draws 3 --options.scheduled_sampling_start 0".split()]
FIELD = [*ENERGY, *"--model.num_decoder_layers 0 --model.head_column_noise 2".split()]
FLOW = [*HEAD, *"--model.head flow --model.flow_steps 2 --options.draws 1 --model.num_decoder_layers 0".split()]
JUDGED = "--options.adversarial_weight 0.1 --options.adversarial_start 0 --options.discriminator_size 4 --options.window_frames 64".split()
ORIGINAL = """--model.architecture original --model.decoder_window 16 --model.fold_size 8 --options.min_frames 128
--options.max_frames 128 --options.validation_crop_frames 128""".split()
KINDS = {"energy": ENERGY, "field": FIELD, "flow": FLOW, "judged": [*FIELD, *JUDGED], "original": ORIGINAL}


def words(dataset: str, output, *more) -> list[str]:
    return [str(word) for word in (*COMMON, "--dataset", dataset, "--output_dir", output, *more)]


def recipe(dataset: str, *more) -> ExpansionRecipe:
    given = words(dataset, "unused", "--max_steps", 1, *more)
    return ExpansionRecipe(TrainingConfig.from_command_line(ExpansionRecipe, given))


def batch_of(built: ExpansionRecipe) -> dict[str, torch.Tensor]:
    return BatchStream(built.stream(0, 1), built.prepare, 2).batch(0).tensors


def loss_of(built: ExpansionRecipe, batch: dict, progress: float = 0.5):
    return {phase.module: phase for phase in built.phases(batch, context(progress))}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_takes_steps_validates_and_resumes_to_the_bit(kind, dataset, tmp_path):
    more = [*KINDS[kind], "--max_steps", 4, "--save_every_steps", 2]
    metrics = main(ExpansionRecipe, words(dataset, tmp_path / "whole", *more))
    assert all(torch.tensor(list(metrics.values())).isfinite())
    assert (metrics["crops_crps"] < metrics["crops_mel_l1"]) == (kind not in ("original",))
    resume = ["--resume", str(tmp_path / "whole/checkpoints/step-00000002")]
    main(ExpansionRecipe, words(dataset, tmp_path / "half", *more, *resume))
    whole, half = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "half")
    for one, two in zip(whole[2:], half, strict=True):
        told = {key: value for key, value in one.items() if not key.endswith("times_real_time")}
        assert {**told, "minutes": 0} == {**{key: two[key] for key in told}, "minutes": 0}
    model = MelReformerModel.from_pretrained(tmp_path / "whole")
    assert (model.samples, model.config.architecture == "original") == (kind != "original", kind == "original")


@pytest.mark.parametrize(("kind", "draws"), [("energy", 3), ("field", 3), ("flow", 1)])
def test_a_loss_compares_so_many_draws(kind, draws, dataset, monkeypatch):
    built = recipe(dataset, *KINDS[kind])
    batch, model = batch_of(built), started(built)["model"]
    given = []
    monkeypatch.setattr(
        type(model.expansion.head),
        "loss",
        lambda self, told, target, counted, noise: given.append(noise.shape) or 1 / 0,
    )
    with pytest.raises(ZeroDivisionError):
        loss_of(built, batch, progress=0.0)
    assert given[0][1] == draws


def test_frozen_encoders_stay_and_everything_else_learns(dataset, tmp_path):
    first = recipe(dataset, *FIELD, "--options.freeze_encoder", "true")
    model = first.trainables()["model"].module
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        name for name, _ in model.named_parameters() if ".encoder." in name or ".decoder.curves." in name
    }
    assert all(p.requires_grad for p in recipe(dataset, *FIELD).trainables()["model"].module.parameters())


def test_weights_of_another_head_start_what_they_share(dataset, tmp_path):
    start = recipe(dataset).trainables()["model"].module
    start.save_pretrained(tmp_path / "start")
    for more in (ENERGY, FIELD, [*FIELD, "--model.fold_size", "4"]):
        built = recipe(dataset, *more)
        model = built.trainables()["model"].module
        load_pretrained(model, str(tmp_path / "start"), built)
        weights, fresh = start.state_dict(), 0
        for name, value in model.state_dict().items():
            if name in weights and weights[name].shape == value.shape:
                assert torch.equal(value, weights[name]), name
            else:
                assert built.may_differ(name), name
                fresh += 1
        assert fresh and torch.equal(
            model.expansion.decoder.curves.curves[0].weight, start.expansion.decoder.curves.curves[0].weight
        )
    narrow = recipe(dataset, *FIELD, "--model.num_bases", "3")
    with pytest.raises(ValueError, match="do not fit this configuration: expansion.decoder.curves"):
        load_pretrained(narrow.trainables()["model"].module, str(tmp_path / "start"), narrow)


def test_the_past_is_the_networks_own_draw_for_a_share_of_the_crops(dataset, monkeypatch):
    built = recipe(dataset, *ENERGY, "--options.input_noise", "0")
    batch, model = batch_of(built), started(built)["model"].eval()
    with torch.no_grad():
        model.expansion.sampler.net.out.weight.normal_()
    calls, run = [], type(model).forward

    def spy(self, *arguments, **given):
        calls.append(given)
        return run(self, *arguments, **given)

    monkeypatch.setattr(type(model), "forward", spy)
    loss_of(built, batch, progress=1.0)
    own, whole = calls
    lead = built.model_config.fold_size
    true = batch["labels"].flatten(0, 1)
    assert own["noise"].shape[:2] == (2, 1) and whole["noise"].shape[:2] == (4, 3)
    # Half of the two crops: the first two of four windows. What is told of them is drawn, the rest is true.
    with torch.no_grad():
        drawn = run(model, **own).output_features
    torch.testing.assert_close(whole["heard_features"][:2, :, lead:], drawn)
    torch.testing.assert_close(whole["decoder_input_features"][:2], drawn)
    torch.testing.assert_close(whole["heard_features"][2:], true[2:])
    torch.testing.assert_close(whole["decoder_input_features"][2:], true[2:, :, lead:])


def test_noise_on_the_past_is_for_the_decoder_and_not_for_the_head(dataset, monkeypatch):
    built = recipe(dataset, *ENERGY, "--options.scheduled_sampling", "0", "--options.input_noise", "2")
    batch, model = batch_of(built), started(built)["model"]
    given = []
    monkeypatch.setattr(type(model), "forward", lambda self, **told: given.append(told) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loss_of(built, batch)
    lead, true = built.model_config.fold_size, batch["labels"].flatten(0, 1)
    torch.testing.assert_close(given[0]["heard_features"], true)
    spread = (given[0]["decoder_input_features"] - true[..., lead:]).flatten(1).std(1)
    assert 0 < spread.min() < spread.max() <= 2.1 and spread.max() / spread.min() > 1.1


def test_discriminators_begin_on_time_and_weigh_a_share_of_the_heads_gradient(dataset):
    start = ["--options.adversarial_start", "0.5", "--options.adversarial_ramp", "0.2"]
    built = recipe(dataset, *FIELD, *JUDGED, *start)
    batch, modules = batch_of(built), started(built)
    weight = modules["model"].expansion.sampler.net.out.weight
    with torch.no_grad():
        weight.normal_(std=0.1)
    assert set(loss_of(built, batch, 0.49)) == {"model"}
    own, norms = None, {}
    for progress in (0.49, 0.5, 0.6, 0.7, 1.0):
        torch.manual_seed(0)
        phases = loss_of(built, batch, progress)
        (gradient,) = torch.autograd.grad(phases["model"].loss, weight)
        own = gradient if own is None else own
        norms[progress] = ((gradient - own).norm() / own.norm()).item()
    # A tenth of the head's own gradient at the end of the ramp, half of that in its middle.
    assert norms[0.5] == pytest.approx(0, abs=1e-3)
    assert norms[0.6] == pytest.approx(0.05, rel=0.1) and norms[0.7] == pytest.approx(0.1, rel=0.1)
    assert norms[1.0] == pytest.approx(norms[0.7], rel=0.05)
    assert set(phases) == {"model", "discriminator"}
    assert "discriminator" not in started(recipe(dataset, *FIELD))


def test_what_does_not_go_together_is_refused(dataset):
    cases = [
        ([*FIELD, "--options.draws", "1"], ("draws", "at least 2", "1")),
        ([*ORIGINAL, "--options.freeze_encoder", "true"], ("freeze_encoder", "'local'")),
        ([*ORIGINAL, "--options.adversarial_weight", "0.1"], ("adversarial_weight", "'local'")),
        ([*FIELD, *JUDGED, "--options.window_frames", "47"], ("window_frames", "48", "47")),
        ([*ORIGINAL, "--options.validation_crop_frames", "200"], ("validation_crop_frames", "128", "200")),
    ]
    for more, fragments in cases:
        with pytest.raises(ValueError) as error:
            recipe(dataset, *more)
        assert_error(error, *fragments)


def test_the_original_is_trained_on_whole_blocks_and_shown_forced_and_free(dataset):
    built = recipe(dataset, *ORIGINAL)
    batch, model = batch_of(built), started(built)["model"].eval()
    assert batch["mel"].shape == (2, 128, 128)
    phase = loss_of(built, batch)["model"]
    with torch.no_grad():
        made = model(batch["mel"], torch.full((2,), 128), decoder_input_features=batch["mel"]).output_features
    torch.testing.assert_close(phase.loss, (made - batch["mel"]).abs().mean())
    with torch.no_grad():
        found = built.validate(model)
    assert "true_teacher_forced_free_running" in found.pictures
