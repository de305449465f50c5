"""Every output class documents its shapes, and the checker of shapes finds what does not keep them."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from diffusers.utils import BaseOutput
from documented_shapes import check_documented_shapes, documented_axes, documented_texts, undocumented_fields
from transformers.utils import ModelOutput

import melreformer_hf


def output_classes() -> list[type]:
    names = [module.name for module in pkgutil.walk_packages(melreformer_hf.__path__, "melreformer_hf.")]
    for name in names:
        if ".cli" not in name:
            importlib.import_module(name)
    found, queue = [], [ModelOutput, BaseOutput]
    while queue:
        for child in queue.pop().__subclasses__():
            queue.append(child)
            if child.__module__.startswith("melreformer_hf."):
                found.append(child)
    return found


def test_every_output_class_documents_every_field():
    classes = output_classes()
    assert len(classes) >= 15
    wrong = {cls.__name__: fields for cls in classes if (fields := undocumented_fields(cls))}
    assert not wrong


@dataclass
class Output(ModelOutput):
    """Output of `Model`.

    Args:
        loss: scalar.
        waveform: (batch, frame * hop_length), full scale at 1.
        codes: (batch, frame, 2) int64 numbers that
            continue (batch) here.
        note: no tensor.
    """

    loss: torch.Tensor | None = None
    waveform: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    note: str | None = None


class Model(torch.nn.Module):
    """Its configuration sizes hop and mel."""

    config = SimpleNamespace(hop_length=4, num_mel_bins=3)

    def forward(self, mel, names=None):
        """Nothing.

        Args:
            mel: (batch, mel, frame).
            names: words.

        Returns:
            something: (else,) of no interest.
        """


def parts(**changes) -> tuple[Output, dict]:
    values = {"loss": torch.zeros(()), "waveform": torch.zeros(2, 20), "codes": torch.zeros(2, 5, 2).long()}
    return Output(**{**values, "note": "n", **changes}), {"mel": torch.zeros(2, 3, 5), "names": ["a"]}


def test_what_is_documented_is_read():
    assert documented_texts(Output.__doc__)["codes"].endswith("continue (batch) here.")
    assert set(documented_texts(Model.forward.__doc__)) == {"mel", "names"}
    assert documented_axes("(batch, frame + 1) of") == ("batch", "frame + 1")
    assert documented_axes("scalar, mean") == () and documented_axes("(quantizer,) x") == ("quantizer",)
    assert documented_axes("for each layer (batch, head)") is None


def test_kept_shapes_give_the_sizes():
    output, inputs = parts()
    assert check_documented_shapes(output, inputs, Model()) == {"batch": 2, "frame": 5}


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"loss": torch.zeros(1)}, "output loss is documented as"),
        ({"waveform": torch.zeros(2, 24)}, "output waveform"),
        ({"waveform": torch.zeros(2, 1, 20)}, "output waveform"),
        ({"waveform": torch.zeros(3, 20)}, "output waveform"),
        ({"codes": torch.zeros(2, 5, 3).long()}, "output codes"),
        ({"codes": torch.zeros(2, 5, 2)}, "int64"),
        ({"loss": torch.zeros(()).long()}, "floating point"),
        ({"note": torch.zeros(2)}, "documents no shape"),
    ],
)
def test_broken_shapes_are_found(changes, fragment):
    output, inputs = parts(**changes)
    with pytest.raises(AssertionError, match=fragment):
        check_documented_shapes(output, inputs, Model())


def test_inputs_are_held_to_their_shapes():
    output, inputs = parts()
    with pytest.raises(AssertionError, match="argument mel"):
        check_documented_shapes(output, {**inputs, "mel": torch.zeros(2, 4, 5)}, Model())
