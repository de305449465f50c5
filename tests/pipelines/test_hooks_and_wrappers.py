"""Nothing is computed past `forward`: offloading hooks and wrappers see every component, in calls and in streams."""

from __future__ import annotations

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from pipeline_utils_for_tests import seeded, tiny_adversarial_idea, tiny_parts, tiny_pipeline
from torch import nn

from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline
from melreformer_hf.pipelines.pipeline_utils import bare

PARTS = ("idea", "expansion", "vocoder")
CLOSE = {"rtol": 0, "atol": 1e-5}


class FakeDevice(ModelHook):
    """Stands for a device: weights are there (not NaN) only while the model's own `forward` runs."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log
        self.weights: list[torch.Tensor] = []

    def init_hook(self, module):
        self.weights = [parameter.detach().clone() for parameter in module.parameters()]
        self.forget(module)
        return module

    def forget(self, module) -> None:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(torch.nan)

    def pre_forward(self, module, *args, **kwargs):
        self.log.append(self.name)
        with torch.no_grad():
            for parameter, weight in zip(module.parameters(), self.weights, strict=True):
                parameter.copy_(weight)
        return args, kwargs

    def post_forward(self, module, output):
        self.forget(module)
        return output


def hooked(pipe: MelReformerPipeline) -> list[str]:
    log: list[str] = []
    for name in PARTS:
        add_hook_to_module(getattr(pipe, name), FakeDevice(name, log))
    return log


def adversarial_pipeline() -> MelReformerPipeline:
    parts = {**tiny_parts(), "idea": tiny_adversarial_idea(), "scheduler": None}
    pipe = MelReformerPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("make", [tiny_pipeline, adversarial_pipeline])
def test_hooks_fire_for_every_component(make):
    expected = make()(1.0, generator=seeded()).audios
    pipe = make()
    log = hooked(pipe)
    torch.testing.assert_close(pipe(1.0, generator=seeded()).audios, expected, **CLOSE)
    assert set(log) == set(PARTS)
    # Whole pieces use one component after the other: nothing travels back and forth.
    assert [name for name, before in zip(log, [None, *log], strict=False) if name != before] == list(PARTS)
    log.clear()
    streamed = torch.cat(list(pipe.stream(1.0, generator=seeded(), chunk_length_in_s=0.2)), dim=-1)
    torch.testing.assert_close(streamed, expected, **CLOSE)
    assert set(log) == set(PARTS) and log.count("expansion") > 2 and log.count("vocoder") > 2
    log.clear()
    tone = torch.sin(torch.arange(22050) * 0.1) * 0.3
    assert pipe.expand(tone, 22050).audios.isfinite().all()
    assert torch.cat(list(pipe.expand_stream(tone, 22050)), dim=-1).isfinite().all()
    assert pipe.live_gain(torch.full((1, 16, 32), -3.0)) > 0
    assert set(log) == {"expansion", "vocoder"}


class Wrapper(nn.Module):
    """What DDP and its kin do: the model is `.module`, only calls are passed on."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        return self.module(*args, **kwargs)


def test_wrapped_components_are_called():
    expected = tiny_pipeline()(1.0, generator=seeded()).audios
    parts = tiny_parts()
    wrapped = {name: Wrapper(parts[name]) for name in PARTS}
    pipe = tiny_pipeline()
    for name, module in wrapped.items():
        assert bare(module) is parts[name]
        setattr(pipe, name, module)
    torch.testing.assert_close(pipe(1.0, generator=seeded()).audios, expected, **CLOSE)
    called = {name: module.calls for name, module in wrapped.items()}
    assert called["idea"] == 20 and called["expansion"] > 1 and called["vocoder"] > 1
    streamed = torch.cat(list(pipe.stream(1.0, generator=seeded())), dim=-1)
    torch.testing.assert_close(streamed, expected, **CLOSE)
    assert all(module.calls > called[name] for name, module in wrapped.items())


@pytest.mark.filterwarnings("ignore:Dynamo:UserWarning")
def test_compiled_components_are_called():
    calls = []

    def backend(graph, inputs):
        calls.append(len(inputs))
        return graph.forward

    pipe, plain = tiny_pipeline(), tiny_pipeline()
    pipe.vocoder = torch.compile(pipe.vocoder, backend=backend)
    expected = plain(0.5, num_inference_steps=2, generator=seeded()).audios
    streamed = list(pipe.stream(0.5, num_inference_steps=2, generator=seeded()))
    torch.testing.assert_close(torch.cat(streamed, dim=-1), expected, **CLOSE)
    assert calls


def test_streams_free_components_when_they_end_and_when_they_are_left():
    pipe = tiny_pipeline()
    freed = []
    pipe.maybe_free_model_hooks = lambda: freed.append(True)
    stream = pipe.stream(1.0, num_inference_steps=1, generator=seeded())
    next(stream)
    assert not freed
    stream.close()
    assert len(freed) == 1
    list(pipe.stream(0.5, num_inference_steps=1, generator=seeded()))
    pipe(0.5, num_inference_steps=1, generator=seeded())
    assert len(freed) == 3
