"""A tiny pipeline with random weights, and what its tests share."""

from __future__ import annotations

import torch

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.models.hifi_vocoder.configuration_hifi_vocoder import HifiVocoderConfig
from melreformer_hf.models.hifi_vocoder.modeling_hifi_vocoder import HifiVocoderModel
from melreformer_hf.models.idea_stylegan2.configuration_idea_stylegan2 import IdeaStyleGan2Config
from melreformer_hf.models.idea_stylegan2.modeling_idea_stylegan2 import IdeaStyleGan2Model
from melreformer_hf.models.idea_unet.unet_idea import IdeaUNetModel, make_scheduler
from melreformer_hf.models.mel_reformer.configuration_mel_reformer import MelReformerConfig
from melreformer_hf.models.mel_reformer.modeling_mel_reformer import MelReformerModel
from melreformer_hf.nn.ideas import row_generators_of
from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline

MEL = MelConfig.preset("hifigan", num_mel_bins=16, fmax=None).to_dict()


def tiny_parts(mel: dict = MEL) -> dict:
    torch.manual_seed(0)
    expansion = MelReformerConfig(
        mel=mel,
        idea_columns=32,
        fold_size=4,
        hidden_size=32,
        intermediate_size=48,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_attention_heads=2,
        postnet_size=16,
        postnet_layers=1,
        postnet_kernel=3,
    )
    vocoder = HifiVocoderConfig(mel=mel, hidden_size=32, intermediate_size=48, num_hidden_layers=2, kernel_size=3)
    unet = IdeaUNetModel(
        mel=mel,
        num_columns=32,
        patch_size=(4, 4),
        block_out_channels=(32, 32),
        norm_num_groups=8,
        log2_frames_mean=6.5,
        log2_frames_std=0.5,
        log2_frames_min=6.0,
        log2_frames_max=7.0,
    )
    return {
        "idea": unet.eval(),
        "scheduler": make_scheduler(),
        "expansion": MelReformerModel(expansion).eval(),
        "vocoder": HifiVocoderModel(vocoder).eval(),
    }


def tiny_adversarial_idea(mel: dict = MEL) -> IdeaStyleGan2Model:
    torch.manual_seed(0)
    config = IdeaStyleGan2Config(
        mel=mel,
        num_columns=32,
        style_size=16,
        num_mapping_layers=1,
        channels=(16, 16),
        log2_frames_mean=6.5,
        log2_frames_std=0.5,
        log2_frames_min=6.0,
        log2_frames_max=7.0,
    )
    return IdeaStyleGan2Model(config).eval()


class SamplingExpansion(MelReformerModel):
    """An expansion that samples: noise of each row's own generator, frame after frame, on what it makes."""

    def stream(self, input_features, num_frames, chunk_frames=64, prime=None, module=None, generator=None):
        rows = row_generators_of(generator, len(input_features))
        for piece in super().stream(input_features, num_frames, chunk_frames, prime, module):
            shape = piece.shape[1:2]
            noise = [[torch.randn(shape, generator=row) for _ in range(piece.shape[-1])] for row in rows]
            yield piece + torch.stack([torch.stack(frames, dim=-1) for frames in noise])


def sampling_expansion() -> SamplingExpansion:
    expansion = tiny_parts()["expansion"]
    expansion.__class__ = SamplingExpansion
    return expansion


def tiny_pipeline(**parts) -> MelReformerPipeline:
    pipe = MelReformerPipeline(**{**tiny_parts(), **parts})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
