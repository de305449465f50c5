"""The noise schedule of ideas, and which of its time steps are taken."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, SchedulerMixin

from melreformer_hf.nn.ideas import takes_timesteps

SCHEDULERS = {"ddim": DDIMScheduler, "dpm": DPMSolverMultistepScheduler}


def make_scheduler(name: str = "dpm", prediction_type: str = "v_prediction"):
    """The noise schedule that ideas are trained and sampled with.

    A squared-cosine schedule; sampling steps are spaced to begin at pure noise (`trailing`).

    Args:
        name: `dpm` (DPM-Solver++, few steps) or `ddim`.
        prediction_type: what the network predicts.

    Raises:
        ValueError: an unknown name.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler must be one of {sorted(SCHEDULERS)}, got {name!r}.")
    extra = {"clip_sample": False} if name == "ddim" else {"algorithm_type": "dpmsolver++"}
    return SCHEDULERS[name](
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction_type,
        timestep_spacing="trailing",
        **extra,
    )


def set_spaced_timesteps(
    scheduler: SchedulerMixin,
    num_inference_steps: int,
    noise_power: float = 1.0,
    device: torch.device | None = None,
    leap_timestep: int | None = None,
) -> None:
    """Set a scheduler's time steps to T (1 - u ** noise_power) for even u, from pure noise down.

    Thousands of values that go up and down together tell their mean through a thousand times their own noise: what an
    idea has in common is decided in the noisiest hundredth of a squared-cosine schedule, and evenly spaced steps leap
    over it, so that ideas come out alike (compare Hoogeboom, Heek, Salimans, Simple diffusion, arXiv 2301.11093, 3.1;
    here the steps move and the schedule stays).

    Args:
        scheduler: its `set_timesteps` is called; one that cannot be told single time steps (DDIM) spaces them itself.
        num_inference_steps: n.
        noise_power: 1 or more.
        device: of the time steps.
        leap_timestep: the second step lies here or below; the others are spaced over what is left.

    Raises:
        ValueError: too many steps for the room below `leap_timestep`.
    """
    count, total = num_inference_steps, scheduler.config.num_train_timesteps
    if not takes_timesteps(scheduler) or (noise_power == 1.0 and leap_timestep is None):
        scheduler.set_timesteps(count, device=device)
        return
    if leap_timestep is not None and count > leap_timestep + 2:
        raise ValueError(
            f"num_inference_steps must be at most {leap_timestep + 2} (leap_timestep={leap_timestep}), got {count}."
        )
    places = [index / count for index in range(count)]
    if leap_timestep is not None and count > 1:
        # u of the second step; from there to 1 the same number of steps as without a leap, evenly.
        second = max(places[1], (1.0 - (leap_timestep + 1) / total) ** (1.0 / noise_power))
        places = [0.0, *(second + (1.0 - second) * index / (count - 1) for index in range(count - 1))]
    last, chosen = total, []
    for index, place in enumerate(places):
        wanted = round(total * (1.0 - place**noise_power)) - 1
        # No step twice, and room for those that follow.
        last = max(min(wanted, last - 1), count - 1 - index)
        chosen.append(last)
    scheduler.set_timesteps(timesteps=chosen, device=device)


__all__ = ["make_scheduler", "set_spaced_timesteps"]
