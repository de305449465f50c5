"""The shapes that docstrings promise, verified on what a model returns; nothing of this runs outside the tests.

A field or argument is documented as `name: (batch, mel, frame) ...` or `name: scalar ...`. An axis is a number, a name,
or a name with one `+`, `-` or `*`, such as `frame * hop_length` or `step + 1`. A name has one size throughout a call:
in all outputs, in all inputs, and in the model's configuration where that has a whole number of this name.
"""

from __future__ import annotations

import dataclasses
import operator
import re

import torch

_ENTRY = re.compile(r"^ {4,12}(\w+): (.*)$")
_OPERATION = re.compile(r"(.+?) ([+*-]) (.+)")
_APPLY = {"+": operator.add, "-": operator.sub, "*": operator.mul}
# What the documentation calls an axis, and the field of a configuration that sizes it.
_CONFIG_NAMES = {"mel": "num_mel_bins", "vocab": "vocab_size", "hidden": "hidden_size", "quantizer": "num_quantizers"}

Axes = tuple[str, ...]


def documented_texts(docstring: str | None) -> dict[str, str]:
    """What the `Args:` of a docstring say about each name, continuation lines joined."""
    texts: dict[str, str] = {}
    name, indent, inside = "", None, False
    for line in (docstring or "").expandtabs(4).splitlines():
        if re.fullmatch(r" *Args:.*", line):
            inside = True
            continue
        if not line.strip() or re.fullmatch(r" *(Returns|Raises|Yields|Example)s?:.*", line):
            inside = inside and not line.strip()
            continue
        entry = _ENTRY.match(line) if inside else None
        depth = len(line) - len(line.lstrip())
        if entry and (indent is None or depth == indent):
            indent, name = depth, entry[1]
            texts[name] = entry[2]
        elif inside and name:
            texts[name] += " " + line.strip()
    return texts


def documented_axes(text: str) -> Axes | None:
    """Axes at the beginning of a text, `()` for a scalar, `None` where it promises no shape."""
    if re.match(r"scalar\b", text):
        return ()
    shape = re.match(r"(?:\w+ )?\(([^()]*)\)", text)  # as in `hard (batch, step), or soft (batch, step, vocab)`
    return None if shape is None else tuple(axis.strip() for axis in shape[1].split(",") if axis.strip())


class _Sizes:
    """Sizes of named axes; a second size for a name is a failure."""

    def __init__(self, config: object) -> None:
        self.config, self.known = config, {}

    def of(self, axis: str) -> int | None:
        if axis.isdigit():
            return int(axis)
        parts = _OPERATION.fullmatch(axis)
        if parts:
            left, right = self.of(parts[1]), self.of(parts[3])
            return None if left is None or right is None else _APPLY[parts[2]](left, right)
        value = self.known.get(axis)
        if value is None:
            value = getattr(self.config, _CONFIG_NAMES.get(axis, axis), None)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def learn(self, axis: str, size: int) -> None:
        """Take a size for a name; of an operation, for the one name in it that has none yet."""
        parts = _OPERATION.fullmatch(axis)
        if parts is None:
            if self.of(axis) is None:
                self.known[axis] = size
            return
        left, right = self.of(parts[1]), self.of(parts[3])
        if left is None and right is not None:
            inverse = {"+": size - right, "-": size + right, "*": size // max(right, 1)}[parts[2]]
            self.learn(parts[1], inverse)
        elif right is None and left is not None and parts[2] == "*":
            self.learn(parts[3], size // max(left, 1))


def check_documented_shapes(output: object, inputs: dict, model: torch.nn.Module) -> dict[str, int]:
    """Compare an output, and the inputs that led to it, with the docstrings of its class and of `forward`.

    Args:
        output: a dataclass of tensors with a documented class.
        inputs: arguments of `model.forward`.
        model: its `config` sizes the axes that bear the name of one of its fields.

    Returns:
        the size of every named axis.

    Raises:
        AssertionError: a tensor without a documented shape, another rank or dtype, or one name with two sizes.
    """
    told_in = documented_texts(type(model).forward.__doc__)
    told_out = documented_texts(type(output).__doc__)
    rows = [(f"argument {name}", told_in.get(name, ""), value) for name, value in inputs.items()]
    rows += [(f"output {name}", told_out.get(name, ""), value) for name, value in output.items()]
    checked = []
    for name, text, value in rows:
        if isinstance(value, torch.Tensor):
            axes = documented_axes(text)
            assert axes is not None, f"{name} of {type(model).__name__} documents no shape: {text!r}"
            assert value.ndim == len(axes), f"{name} is documented as {axes}, has shape {tuple(value.shape)}"
            checked.append((name, axes, value))
            if name.startswith("output"):
                whole = text[text.find(")") + 1 :].lstrip().startswith("int64")
                wanted = value.dtype == torch.int64 if whole else value.is_floating_point()
                assert wanted, f"{name} is documented as {'int64' if whole else 'floating point'}, is {value.dtype}"
    sizes = _Sizes(model.config)
    for plain in (True, False):  # simple names first: operations are solved with their sizes
        for _, axes, value in checked:
            for axis, size in zip(axes, value.shape, strict=True):
                if plain == (_OPERATION.fullmatch(axis) is None):
                    sizes.learn(axis, size)
    for name, axes, value in checked:
        expected = tuple(sizes.of(axis) for axis in axes)
        assert expected == tuple(value.shape), f"{name} is documented as {axes} = {expected}, is {tuple(value.shape)}"
    return sizes.known


def undocumented_fields(output_class: type) -> list[str]:
    """Fields of an output class without a documented meaning, and tensors without a documented shape."""
    texts, scalars = documented_texts(output_class.__doc__), "all scalars" in (output_class.__doc__ or "")
    wrong = []
    for field in dataclasses.fields(output_class):
        is_tensor = re.search(r"(?<!\[)torch\.\w*Tensor", str(field.type)) is not None and "tuple" not in str(
            field.type
        )
        if not texts.get(field.name) or (is_tensor and not scalars and documented_axes(texts[field.name]) is None):
            wrong.append(field.name)
    return wrong


__all__ = ["check_documented_shapes", "documented_axes", "documented_texts", "undocumented_fields"]
