""".ecdc files of codes, packed and with the language model."""

from __future__ import annotations

import pytest
import torch
from testing_utils import assert_error

from melreformer_hf.models.codec_lm.configuration_codec_lm import CodecLMConfig
from melreformer_hf.models.codec_lm.container_codec_lm import EcdcHeader
from melreformer_hf.models.codec_lm.ecdc_codec_lm import EcdcSegment, OriginalSteps, read_ecdc, write_ecdc
from melreformer_hf.models.codec_lm.modeling_codec_lm import CodecLMModel

SIZE, FRAMES = 16, [9, 14]
VARIANTS = {"encodec": {}, "pre-norm": {"norm_first": True, "activation": "relu"}}


def build(name: str = "encodec") -> CodecLMModel:
    torch.manual_seed(0)
    return CodecLMModel(CodecLMConfig.preset("tiny", initializer_range=0.4, **VARIANTS[name])).eval()


def segments(scaled: bool) -> list[EcdcSegment]:
    generator = torch.Generator().manual_seed(1)
    codes = [torch.randint(SIZE, (2, frames), generator=generator) for frames in FRAMES]
    return [EcdcSegment(part, 0.25 * (index + 1) if scaled else None) for index, part in enumerate(codes)]


def header(uses_language_model: bool) -> EcdcHeader:
    return EcdcHeader("tiny", 1000, 2, uses_language_model)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", [None, *VARIANTS])
def test_files_come_back(name, scaled):
    model, written = build(name) if name else None, segments(scaled)
    data = write_ecdc(header(model is not None), written, SIZE, model)
    found_header, found = read_ecdc(data, FRAMES, SIZE, scaled, model)
    assert found_header == header(model is not None)
    for one, other in zip(found, written, strict=True):
        assert torch.equal(one.audio_codes, other.audio_codes) and one.scale == other.scale


def test_size_tells_that_the_model_is_used():
    """Codes that the model finds likely take fewer bits than packed ones."""
    model = build()
    with torch.no_grad():
        for head in model.heads:
            head.bias[3] += 8.0
    likely = [EcdcSegment(torch.full((2, 200), 3))]
    coded, packed = (len(write_ecdc(header(m is not None), likely, SIZE, m)) for m in (model, None))
    assert coded < 0.4 * packed


@pytest.mark.parametrize("with_model", [False, True])
def test_truncated_files_are_refused(with_model):
    model = build() if with_model else None
    data = write_ecdc(header(with_model), segments(True), SIZE, model)
    for length in (*range(0, len(data), 7), len(data) - 1):
        with pytest.raises(ValueError, match="truncated|corrupt"):
            read_ecdc(data[:length], FRAMES, SIZE, True, model)
    with pytest.raises(ValueError, match="1 bytes follow"):
        read_ecdc(data + b"\0", FRAMES, SIZE, True, model)


def test_what_does_not_fit_is_refused():
    model, written = build(), segments(False)
    wide = EcdcHeader("tiny", 1000, 4, True)
    four = [EcdcSegment(torch.zeros(4, 3, dtype=torch.long))]
    cases = (
        (lambda: write_ecdc(header(True), written, SIZE), "no model"),
        (lambda: write_ecdc(header(False), written, SIZE, model), "a model"),
        (lambda: write_ecdc(header(False), written, 12), "power of two"),
        (lambda: write_ecdc(header(True), written, 32, model), "of 32 codes"),
        (lambda: write_ecdc(wide, four, SIZE, model), "4 quantizers"),
        (lambda: write_ecdc(header(True), four, SIZE, model), "(2, frame)"),
        (lambda: write_ecdc(header(True), written, SIZE, build().double()), "float64"),
        (lambda: write_ecdc(header(True), written, SIZE, build().train()), "training=True"),
    )
    for call, part in cases:
        with pytest.raises(ValueError) as error:
            call()
        assert_error(error, part)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_steps_give_the_model_s_own_probabilities(name):
    """The original's operations, one frame at a time, past the context: other masks, positions or states show here."""
    model = build(name)
    frames = 2 * model.config.num_context_frames + 3
    depth = model.config.num_quantizers
    codes = torch.randint(SIZE, (1, depth, frames), generator=torch.Generator().manual_seed(2))
    shifted = torch.nn.functional.pad(codes[..., :-1], (1, 0), value=-1)
    cache, expected = None, []
    for frame in shifted.split(1, dim=2):
        output = model(frame, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        expected.append(output.logits[0, :, 0].softmax(-1))
    steps = OriginalSteps(model)
    for frame, own in zip(shifted[0].unbind(1), expected, strict=True):
        torch.testing.assert_close(steps.probabilities(frame), own, rtol=1e-4, atol=1e-6)
