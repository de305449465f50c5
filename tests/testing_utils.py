"""The contract that every model of the package keeps, as a mixin: subclass, give `config`, `model`, `inputs`."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from documented_shapes import check_documented_shapes
from transformers import AttentionInterface

from melreformer_hf.nn.attention import eager_attention

torch.set_num_threads(min(2, os.cpu_count() or 1))


class ModelContractMixin:
    """Shared tests of a transformers-style model.

    Subclasses define:
        config() -> the config of a tiny model.
        model_class: the class; built as `model_class(config)`.
        inputs(batch) -> dict of forward arguments with `batch` rows; the rows are a prefix of those for a larger batch.
        main_output: name of the output field that is compared.

    and may define:
        loss(output) -> scalar for the gradient test (default: `output.loss`, else the mean square of the main output).
        batch_fields: names of the inputs that have a batch axis (default: all tensors).
        frozen: names of parameters that get no gradient, each with a reason (default: none).
        steps(model) -> what streaming runs again and again: dict of names to (function or module, arguments).
    """

    model_class: type
    main_output: str
    frozen: tuple[str, ...] = ()
    takes_other_types = False  # whether inputs of another floating point type than the weights are cast
    atol = 1e-5

    def config(self):
        raise TypeError("a contract test class must define config()")

    def inputs(self, batch: int) -> dict:
        raise TypeError("a contract test class must define inputs()")

    def steps(self, model) -> dict[str, tuple[Callable, tuple]]:
        return {}

    def model(self):
        torch.manual_seed(0)
        return self.model_class(self.config()).eval()

    def graph_model(self):
        """The model whose graphs are traced, which costs time per layer; the same unless a family has many."""
        return self.model()

    def output(self, model, inputs: dict) -> torch.Tensor:
        with torch.no_grad():
            return getattr(model(**inputs), self.main_output)

    def loss(self, output) -> torch.Tensor:
        value = getattr(output, "loss", None)
        return value if value is not None else getattr(output, self.main_output).float().square().mean()

    def test_save_and_load_keep_everything(self, tmp_path):
        model = self.model()
        expected = self.output(model, self.inputs(2))
        model.save_pretrained(tmp_path)
        assert not list(tmp_path.glob("*.bin")), "weights are saved as safetensors only"
        loaded = self.model_class.from_pretrained(tmp_path).eval()
        for name, tensor in model.named_parameters():
            torch.testing.assert_close(loaded.get_parameter(name), tensor, rtol=0, atol=0, msg=name)
        for name, tensor in model.named_buffers():
            torch.testing.assert_close(loaded.get_buffer(name), tensor, rtol=0, atol=0, msg=name)
        torch.testing.assert_close(self.output(loaded, self.inputs(2)), expected, rtol=0, atol=0)

    def test_is_deterministic(self):
        model, inputs = self.model(), self.inputs(2)
        torch.testing.assert_close(self.output(model, inputs), self.output(model, inputs), rtol=0, atol=0)
        again = self.model()
        torch.testing.assert_close(self.output(again, inputs), self.output(model, inputs), rtol=0, atol=0)

    def test_named_and_tuple_outputs_agree(self):
        model, inputs = self.model(), self.inputs(2)
        with torch.no_grad():
            named, plain = model(**inputs), model(**inputs, return_dict=False)
        assert isinstance(plain, tuple)
        torch.testing.assert_close(plain, named.to_tuple(), rtol=0, atol=0)

    def test_outputs_have_their_documented_shapes(self):
        model = self.model()
        for batch in (1, 2):
            inputs = self.inputs(batch)
            with torch.no_grad():
                sizes = check_documented_shapes(model(**inputs), inputs, model)
            assert sizes["batch"] == batch

    def test_batch_equals_single(self):
        model, inputs = self.model(), self.inputs(3)
        together = self.output(model, inputs)
        for row in range(3):
            single = {
                key: value[row : row + 1] if isinstance(value, torch.Tensor) and value.ndim else value
                for key, value in inputs.items()
            }
            alone = self.output(model, single)
            torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-4, atol=self.atol)

    def test_gradients_reach_every_parameter(self):
        model = self.model().train()
        output = model(**self.inputs(2))
        self.loss(output).backward()
        missing = [
            name
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
            and not name.startswith(self.frozen or ("\0",))
            and (parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any())
        ]
        assert not missing, f"no finite non-zero gradient at {missing}"

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision_is_loaded_whole_and_stays_close(self, dtype, tmp_path):
        """As users load it: `from_pretrained` builds the model anew, where `.to` would cast whatever is there."""
        model, inputs = self.model(), self.inputs(2)
        expected = self.output(model, inputs).float()
        model.save_pretrained(tmp_path)
        half = self.model_class.from_pretrained(tmp_path, dtype=dtype).eval()
        wrong = {name: parameter.dtype for name, parameter in half.named_parameters() if parameter.dtype != dtype}
        assert not wrong, f"parameters of another type: {wrong}"
        scale = expected.abs().max().clamp(min=1e-3)
        # Inputs as they come, and cast like the weights.
        for kind in {torch.float32, dtype} if self.takes_other_types else {dtype}:
            cast = {k: v.to(kind) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}
            actual = self.output(half, cast).float()
            assert actual.isfinite().all()
            assert (actual - expected).abs().mean() / scale < 0.1

    def test_compiles_into_one_graph(self):
        """Whatever would break the graph (a configuration built in `forward`, a number read from a tensor) fails."""
        model, inputs = self.graph_model(), self.inputs(2)
        expected = self.output(model, inputs)
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(self.output(compiled, inputs), expected, rtol=1e-4, atol=self.atol)

    def test_is_exported(self):
        model, inputs = self.graph_model(), self.inputs(2)
        expected = self.output(model, inputs)
        program = torch.export.export(model, (), inputs)
        torch.testing.assert_close(self.output(program.module(), inputs), expected, rtol=1e-4, atol=self.atol)

    def test_streaming_steps_compile_and_are_exported(self):
        model = self.graph_model()
        for name, (function, arguments) in self.steps(model).items():
            with torch.no_grad():
                expected = flat_tensors(function(*arguments))
                torch.compiler.reset()
                compiled = torch.compile(function, fullgraph=True, backend="eager")(*arguments)
                made = [compiled]
                if torch.__version__ >= (2, 7):  # 2.6 exports no states that are dataclasses
                    made.append(torch.export.export(Wrapped(model, function), arguments).module()(*arguments))
            for actual in made:
                torch.testing.assert_close(
                    flat_tensors(actual), expected, rtol=1e-4, atol=self.atol, msg=lambda m, name=name: f"{name}: {m}"
                )

    def test_attention_implementations_agree(self, tmp_path):
        model, inputs = self.model(), self.inputs(2)
        layers = [module for module in model.modules() if hasattr(type(module), "attn_implementation")]
        if any(getattr(module, "always_eager", False) for module in layers):
            AttentionInterface.register("spied", eager_attention)
            with pytest.raises(ValueError, match="spied"):
                model.set_attn_implementation("spied")
            return
        if not layers:
            return
        assert {module.attn_implementation for module in layers} == {"sdpa"}  # the fast one, unless told otherwise
        expected, called = self.output(model, inputs), []

        def spy(*arguments, **kwargs):
            called.append(arguments[0])
            return eager_attention(*arguments, **kwargs)

        AttentionInterface.register("spied", spy)
        model.save_pretrained(tmp_path)
        chosen = self.model_class.from_pretrained(tmp_path, attn_implementation="spied").eval()
        torch.testing.assert_close(self.output(chosen, inputs), expected, rtol=1e-4, atol=1e-4)
        assert len(called) >= len(layers), "layers do not attend by the chosen function"
        eager = self.model_class.from_pretrained(tmp_path, attn_implementation="eager").eval()
        torch.testing.assert_close(self.output(eager, inputs), expected, rtol=1e-4, atol=1e-4)
        count = len(called)
        model.set_attn_implementation("spied")
        self.output(model, inputs)
        assert len(called) > count
        for name in ("flex_attention", "flash_attention_2", "nonsense"):
            with pytest.raises((ValueError, ImportError), match="attention|nonsense"):
                self.model_class.from_pretrained(tmp_path, attn_implementation=name)

    def test_gradient_checkpointing_changes_no_gradient(self):
        """The gradients are equal, and something is computed twice; or the model says that it has none."""
        if not self.model_class.supports_gradient_checkpointing:
            with pytest.raises(ValueError, match=self.model_class.__name__):
                enable_checkpointing(self.model())
            return
        gradients, calls = [], []
        for checkpointing in (False, True):
            model = self.model().train()
            if checkpointing:
                enable_checkpointing(model)
            count = [0]
            for module in model.modules():
                module.register_forward_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
            torch.manual_seed(1)
            self.loss(model(**self.inputs(2))).backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
            calls.append(count[0])
        assert calls[1] > calls[0], "nothing was computed again"
        torch.testing.assert_close(gradients[1], gradients[0])

    def test_config_round_trip(self, tmp_path):
        config = self.config()
        config.save_pretrained(tmp_path)
        loaded = type(config).from_pretrained(tmp_path)
        assert loaded.to_diff_dict() == config.to_diff_dict()
        assert type(config)(**config.to_dict()).to_diff_dict() == config.to_diff_dict()

    def test_unknown_config_keys_are_refused(self):
        config_class = type(self.config())
        with pytest.raises(ValueError, match="hiden_sizze"):
            config_class(hiden_sizze=3)


class Wrapped(torch.nn.Module):
    """A function of a model as a module, which `torch.export` wants; its weights are found below."""

    def __init__(self, model: torch.nn.Module, function: Callable) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *arguments):
        return self.function(*arguments)


def flat_tensors(output: object) -> list[torch.Tensor]:
    """All tensors of a nested output, in order."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def enable_checkpointing(model) -> None:
    """Switch on gradient checkpointing by the name that this transformers has for it."""
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


def assert_error(exception: pytest.ExceptionInfo, *fragments: str) -> None:
    """An error message must hold every fragment: the argument, the rule, the value."""
    message = str(exception.value)
    missing = [fragment for fragment in fragments if fragment not in message]
    assert not missing, f"message {message!r} lacks {missing}"
