"""One discriminator at a time: which one judges next, and which bitrate it judges.

Source: LumenPallidium/audio_generation. Deviations: its draw looked its energies up under a name that is never written,
so that it was always uniform; here they are kept under the discriminator's own name and bias-corrected, and the draw
follows them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import distributed, nn


class DiscriminatorDraw(nn.Module):
    """Draws one of several discriminators, those with high energies more often.

    The energy of a discriminator is the moving average of what `record` was told (the generator's loss under it, for
    instance: high where the generator fails). Its probability is the softmax of energies over `temperature`; one that
    was never recorded has the mean energy of the others. Energies are buffers: a recipe names the draw among its `stateful`.
    They are the same in all processes, and so is the draw when its generator is (`StepContext.generator`).

    Args:
        names: of the discriminators, in the order of their bitrates (see `num_quantizers`).
        decay: of the moving averages.
        temperature: small values draw the hardest nearly always, large ones all alike.

    Raises:
        ValueError: no or equal names, or a number out of range.
    """

    def __init__(self, names: Sequence[str], decay: float = 0.95, temperature: float = 1.0) -> None:
        super().__init__()
        if not names or len(set(names)) != len(names):
            raise ValueError(f"names must be different and at least one, got {list(names)}.")
        if not 0 <= decay < 1 or temperature <= 0:
            raise ValueError(
                f"decay must be in 0..1 without 1 and temperature positive, got {decay} and {temperature}."
            )
        self.names, self.decay, self.temperature = tuple(names), decay, temperature
        self.register_buffer("sums", torch.zeros(len(names), dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(len(names), dtype=torch.float64))
        self.register_buffer("current", torch.tensor(-1))

    def _apply(self, fn, recurse: bool = True):
        # Energies stay on the CPU in double precision, where they are drawn from: not every device has float64.
        return self

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise ValueError(f"name must be one of {list(self.names)}, got {name!r}.")
        return self.names.index(name)

    def record(self, name: str, energy: float | torch.Tensor) -> None:
        """Take a finite energy, averaged over processes, into the average of a discriminator.

        Every process calls with its own energy of the same discriminator.

        Raises:
            ValueError: unknown name, or an energy that is not finite.
        """
        index = self._index(name)
        value = float(mean_over_processes(torch.as_tensor(energy).detach().float()))
        if not torch.isfinite(torch.tensor(value)):
            raise ValueError(f"energy of {name!r} must be finite, got {value}.")
        self.sums[index] = self.decay * self.sums[index] + (1 - self.decay) * value
        self.counts[index] = self.decay * self.counts[index] + (1 - self.decay)

    def probabilities(self) -> torch.Tensor:
        """(discriminator,) probabilities in the order of `names`, on the CPU."""
        sums, counts = self.sums, self.counts
        known = counts > 0
        energies = torch.zeros_like(sums)
        if known.any():
            energies[known] = sums[known] / counts[known]
            # A discriminator that was never drawn must not stay undrawn for being unknown.
            energies[~known] = energies[known].mean()
        return torch.softmax(energies / self.temperature, dim=0)

    def draw(self, generator: torch.Generator | None = None) -> str:
        """Name of the next discriminator; a CPU generator makes it repeatable."""
        self.current.fill_(torch.multinomial(self.probabilities(), 1, generator=generator)[0])
        return self.names[int(self.current)]

    @property
    def drawn(self) -> str | None:
        """What was drawn last, also after the state was loaded; `None` before the first draw."""
        return None if self.current < 0 else self.names[int(self.current)]

    def num_quantizers(self, name: str, num_quantizers: int) -> int:
        """Codebooks in use while a discriminator judges: the first one judges all, the others 1/(n-1), 2/(n-1) ... of them.

        Args:
            name: of the discriminator.
            num_quantizers: codebooks in all.

        Raises:
            ValueError: unknown name, or fewer codebooks than discriminators after the first.
        """
        index, others = self._index(name), len(self.names) - 1
        if num_quantizers < max(others, 1):
            raise ValueError(f"num_quantizers must be at least {max(others, 1)}, got {num_quantizers}.")
        return num_quantizers if index in (0, others) else index * (num_quantizers // others)


def mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    """A tensor averaged over the processes of a training, in each of them."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return values
    values = values.clone()
    distributed.all_reduce(values)
    return values / distributed.get_world_size()


__all__ = ["DiscriminatorDraw"]
