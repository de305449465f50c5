"""Taking modules out of training for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def freeze(*modules: nn.Module) -> Iterator[None]:
    """Take modules out of training within a block: gradients pass through them, their own are not computed.

    The trainer drops gradients that reach another module than a phase's own in any case; this saves computing them.
    Parameters that were frozen before stay so afterwards.
    """
    # Only those that train now: the rest stays frozen at the end.
    parameters = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


__all__ = ["freeze"]
