"""Given ideas: noised as much as asked for, denoised to what the network knows, and kept where they shall stay."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from testing_utils import assert_error

from melreformer_hf.models.idea_unet.unet_idea import IdeaUNetModel, make_scheduler
from melreformer_hf.nn.ideas import IdeaCourse, IdeaEdit

BINS, COLUMNS = 16, 32
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SCHEDULERS = {
    "dpm, noise": lambda: make_scheduler("dpm", "epsilon"),
    "dpm, velocity": lambda: make_scheduler("dpm", "v_prediction"),
    "dpm, idea": lambda: make_scheduler("dpm", "sample"),
    "dpm, flow": lambda: DPMSolverMultistepScheduler.from_config(make_scheduler("dpm").config, **FLOW),
    "ddim, noise": lambda: make_scheduler("ddim", "epsilon"),
    "ddim, velocity": lambda: make_scheduler("ddim", "v_prediction"),
}


@pytest.fixture(scope="module")
def model() -> IdeaUNetModel:
    torch.manual_seed(0)
    sizes = {"patch_size": (4, 4), "block_out_channels": (32, 32), "norm_num_groups": 8, "noise_power": 1.2}
    return IdeaUNetModel(mel={"num_mel_bins": BINS}, num_columns=COLUMNS, **sizes).eval()


def an_idea(seed: int) -> torch.Tensor:
    return torch.randn(1, BINS, COLUMNS, generator=torch.Generator().manual_seed(seed)) * 2 - 5


class Oracle:
    """Stands for a network that knows the idea behind all noise; tells what it was given."""

    def __init__(self, model: IdeaUNetModel, scheduler, target: torch.Tensor) -> None:
        self.x0, self.kind = model.normalize_idea(target), scheduler.config.prediction_type
        self.scheduler, self.inputs, self.steps = scheduler, [], []

    def shares(self, timestep: torch.Tensor) -> tuple[float, float]:
        """How much of the idea and of the noise there is at a time step, by the schedule's formula."""
        if self.kind == "flow_prediction":
            place = (self.scheduler.timesteps == timestep).nonzero()[0, 0]
            sigma = self.scheduler.sigmas[place].item()
            return 1 - sigma, sigma
        kept = self.scheduler.alphas_cumprod[timestep].double().item()
        return math.sqrt(kept), math.sqrt(1 - kept)

    def __call__(self, latents, timestep, told, return_dict):
        self.inputs.append(latents.clone())
        self.steps.append(int(timestep))
        alpha, sigma = self.shares(timestep)
        noise = (latents - alpha * self.x0) / sigma
        predicted = {
            "epsilon": noise,
            "v_prediction": alpha * noise - sigma * self.x0,
            "sample": self.x0,
            "flow_prediction": noise - self.x0,
        }[self.kind]
        return SimpleNamespace(sample=predicted)


def draw(model, scheduler, edit=None, module=None, steps=8, seed=3, **arguments):
    generator = torch.Generator().manual_seed(seed)
    settings = {"scheduler": scheduler, "num_inference_steps": steps, "module": module, "edit": edit, **arguments}
    return model.sample(1, generator, 500, **settings).ideas


@pytest.mark.parametrize("name", SCHEDULERS)
def test_full_strength_forgets_and_none_changes_nothing(model, name):
    scheduler, idea = SCHEDULERS[name](), an_idea(0)
    assert torch.equal(draw(model, scheduler, IdeaEdit(idea, 1.0)), draw(model, scheduler))
    assert torch.equal(draw(model, scheduler, IdeaEdit(an_idea(1), 1.0)), draw(model, scheduler))
    assert torch.equal(draw(model, scheduler, IdeaEdit(idea, 0.0), module=None), idea)
    changes = [(draw(model, scheduler, IdeaEdit(idea, strength)) - idea).abs().mean() for strength in (0.2, 0.5, 0.8)]
    assert min(changes) > 0
    if name != "dpm, idea":  # an untrained network's own idea is nothing, whatever it is given
        assert changes[0] < changes[1] < changes[2]


@pytest.mark.parametrize("strength", [0.13, 0.5, 0.9])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_is_noised_is_denoised_to_what_the_network_knows(model, name, strength):
    scheduler, given, target = SCHEDULERS[name](), an_idea(0), an_idea(1).clamp(min=model.mel_config.floor_value)
    oracle = Oracle(model, scheduler, target)
    made = draw(model, scheduler, IdeaEdit(given, strength), oracle)
    torch.testing.assert_close(made, target, rtol=0, atol=2e-3)
    # The first input is the given idea, as noisy as the strength says.
    first = oracle.steps[0]
    if name in ("dpm, noise", "dpm, velocity", "dpm, idea"):
        assert first == round(1000 * strength) - 1
    else:
        assert 1000 * strength - 125 <= first < 1000 * strength
    noise = torch.randn(1, 1, BINS, COLUMNS, generator=torch.Generator().manual_seed(3))
    alpha, sigma = oracle.shares(torch.tensor(first))
    torch.testing.assert_close(
        oracle.inputs[0], alpha * model.normalize_idea(given) + sigma * noise, rtol=0, atol=1e-4
    )
    assert oracle.steps == sorted(set(oracle.steps), reverse=True)


@pytest.mark.parametrize("strength", [0.4, 1.0])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_columns_that_are_kept_stay_to_the_last_number(model, name, strength):
    scheduler, given, target = SCHEDULERS[name](), an_idea(0), an_idea(1).clamp(min=model.mel_config.floor_value)
    drawn = torch.zeros(1, COLUMNS, dtype=torch.bool)
    drawn[:, 10:20] = True
    oracle = Oracle(model, scheduler, target)
    made = draw(model, scheduler, IdeaEdit(given, strength, drawn), oracle)
    assert torch.equal(made[..., ~drawn[0]], given[..., ~drawn[0]])
    torch.testing.assert_close(made[..., 10:20], target[..., 10:20], rtol=0, atol=2e-3)
    # Meanwhile the network sees them with as much noise as all else has.
    noise = torch.randn(1, 1, BINS, COLUMNS, generator=torch.Generator().manual_seed(3))
    for seen, step in zip(oracle.inputs[1:], oracle.steps[1:], strict=True):
        alpha, sigma = oracle.shares(torch.tensor(step))
        known = alpha * model.normalize_idea(given) + sigma * noise
        torch.testing.assert_close(seen[..., :10], known[..., :10], rtol=0, atol=1e-4)
    other = draw(model, scheduler, IdeaEdit(given, strength, drawn))
    assert torch.equal(other[..., 20:], given[..., 20:]) and not torch.equal(other[..., 10:20], given[..., 10:20])


def test_few_steps_do_not_round_the_strength(model):
    scheduler = make_scheduler("dpm", "v_prediction")
    for strength in (0.1, 0.2, 0.3):
        oracle = Oracle(model, scheduler, an_idea(1))
        draw(model, scheduler, IdeaEdit(an_idea(0), strength), oracle, steps=3)
        assert oracle.steps[0] == 1000 * strength - 1


def test_schedulers_of_flows_are_asked_in_their_own_words():
    scheduler, noise, given = FlowMatchEulerDiscreteScheduler(), torch.randn(1, 1, 4, 6), torch.randn(1, 1, 4, 6)
    scheduler.set_timesteps(5)
    course = IdeaCourse(noise, scheduler, IdeaEdit(given[:, 0], 0.5), given)
    torch.testing.assert_close(course.begin(), 0.499 * noise + 0.501 * given, rtol=0, atol=1e-5)
    scheduler.set_timesteps(5)
    assert torch.equal(IdeaCourse(noise, scheduler).begin(), noise)


@pytest.mark.parametrize(
    ("edit", "fragments"),
    [
        (IdeaEdit(torch.zeros(1, BINS, 8)), ["edit.ideas", f"(1, {BINS}, {COLUMNS})", f"(1, {BINS}, 8)"]),
        (IdeaEdit(torch.zeros(1, BINS, COLUMNS).long()), ["edit.ideas", "floating", "int64"]),
        (IdeaEdit(torch.full((1, BINS, COLUMNS), math.nan)), ["edit.ideas", "finite"]),
        (IdeaEdit(torch.zeros(1, BINS, COLUMNS), 1.1), ["edit.strength", "0 to 1", "1.1"]),
        (IdeaEdit(torch.zeros(1, BINS, COLUMNS), math.nan), ["edit.strength", "nan"]),
        (IdeaEdit(torch.zeros(1, BINS, COLUMNS), 0.5, torch.zeros(1, COLUMNS)), ["edit.drawn", "bool", "float32"]),
        (IdeaEdit(torch.zeros(1, BINS, COLUMNS), 0.5, torch.ones(COLUMNS).bool()), ["edit.drawn", f"(1, {COLUMNS})"]),
    ],
)
def test_edits_of_the_wrong_kind(model, edit, fragments):
    with pytest.raises(ValueError) as error:
        draw(model, make_scheduler("dpm"), edit)
    assert_error(error, *fragments)
