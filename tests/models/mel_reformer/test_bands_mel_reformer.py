"""The learned interpolation that all bands share."""

from __future__ import annotations

import pytest
import torch
from testing_utils import ModelContractMixin

from melreformer_hf.models.mel_reformer.bands_mel_reformer import BandInterpolator
from melreformer_hf.models.mel_reformer.configuration_mel_reformer import MelReformerConfig
from melreformer_hf.models.mel_reformer.modeling_mel_reformer import MelReformerModel
from melreformer_hf.models.mel_reformer.timing_mel_reformer import interpolate_idea


class TestMelReformerWithBands(ModelContractMixin):
    model_class = MelReformerModel
    main_output = "output_features"

    def config(self):
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_encoder_layers": 1, "num_decoder_layers": 1}
        sizes |= {"num_attention_heads": 2, "postnet_size": 8, "postnet_layers": 1, "idea_columns": 16}
        return MelReformerConfig(**sizes, band_size=8)

    def inputs(self, batch: int) -> dict:
        generator = torch.Generator().manual_seed(1)
        idea = torch.randn(4, 128, 16, generator=generator) - 5
        labels = torch.randn(4, 128, 24, generator=generator) - 5
        frames = torch.tensor([40, 64, 30, 24])
        return {"input_features": idea[:batch], "num_frames": frames[:batch], "labels": labels[:batch]}

    def test_stream_equals_generate(self):
        model, inputs = self.model(), self.inputs(2)
        idea, frames = inputs["input_features"], inputs["num_frames"]
        whole = model.generate(idea, frames)
        pieces = torch.cat(list(model.stream(idea, frames, chunk_frames=9)), dim=-1)
        torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_frames", [7, 16, 100, 5000])
def test_stretches_are_corrected_like_pieces(num_frames):
    torch.manual_seed(0)
    bands = BandInterpolator(8)
    idea, frames = torch.randn(1, 12, 16), torch.tensor([num_frames])
    described = bands.describe(idea)
    assert described.shape == (1, 17, 12, 8)

    def corrected(start: int, length: int) -> torch.Tensor:
        begin = torch.tensor([start])
        return bands(described, interpolate_idea(idea, begin, length, frames), begin, frames)

    whole = corrected(0, num_frames)
    assert whole.shape == (1, 12, num_frames) and whole.std() > 0
    third = num_frames // 3
    torch.testing.assert_close(corrected(third, third), whole[..., third : 2 * third], rtol=1e-5, atol=1e-5)


def test_only_the_surroundings_matter():
    torch.manual_seed(0)
    bands = BandInterpolator(8)
    idea, frames, begin = torch.randn(1, 12, 16), torch.tensor([160]), torch.tensor([0])
    changed = idea.clone()
    changed[:, 6, 8] += 1
    results = [
        bands(bands.describe(x), interpolate_idea(x, begin, 160, frames), begin, frames) for x in (idea, changed)
    ]
    moved = (results[0] - results[1]).abs() > 1e-7
    rows, columns = moved[0].any(1).nonzero().flatten(), moved[0].any(0).nonzero().flatten()
    assert rows.tolist() == [4, 5, 6, 7, 8]
    # Column 8 has its centre at frame 85 and is seen from up to four columns before to three after.
    assert columns.min() >= 85 - 40 and columns.max() < 85 + 30
    assert columns.min() < 85 - 30 and columns.max() > 85 + 18
