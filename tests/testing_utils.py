"""The contract that every model of the package keeps, as a mixin: subclass, give `config`, `model`, `inputs`."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from documented_shapes import check_documented_shapes

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
    """

    model_class: type
    main_output: str
    frozen: tuple[str, ...] = ()
    atol = 1e-5

    def config(self):
        raise TypeError("a contract test class must define config()")

    def inputs(self, batch: int) -> dict:
        raise TypeError("a contract test class must define inputs()")

    def model(self):
        torch.manual_seed(0)
        return self.model_class(self.config()).eval()

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

    def test_bfloat16_runs_and_stays_close(self):
        model, inputs = self.model(), self.inputs(2)
        expected = self.output(model, inputs)
        half = copy.deepcopy(model).to(torch.bfloat16)
        cast = {
            k: v.to(torch.bfloat16) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()
        }
        actual = self.output(half, cast).float()
        assert actual.isfinite().all()
        scale = expected.float().abs().max().clamp(min=1e-3)
        assert (actual - expected.float()).abs().mean() / scale < 0.1

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


def assert_error(exception: pytest.ExceptionInfo, *fragments: str) -> None:
    """An error message must hold every fragment: the argument, the rule, the value."""
    message = str(exception.value)
    missing = [fragment for fragment in fragments if fragment not in message]
    assert not missing, f"message {message!r} lacks {missing}"
