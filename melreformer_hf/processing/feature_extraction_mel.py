"""Waveforms to log-mels under a contract, savable beside a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor

from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram
from melreformer_hf.nn.configuration import mel_config_of


class MelFeatureExtractor(SequenceFeatureExtractor):
    """Log-mel features of a batch of waveforms.

    Args:
        mel: the mel contract as `MelConfig.to_dict()`; `None` is the package's own.

    Example:
        >>> import numpy as np
        >>> from melreformer_hf import MelFeatureExtractor
        >>> extractor = MelFeatureExtractor()
        >>> extractor(np.zeros(22050), sampling_rate=22050).input_features.shape
        torch.Size([1, 128, 86])
    """

    model_input_names = ["input_features", "num_frames"]

    def __init__(self, mel: dict | None = None, **kwargs) -> None:
        config = mel_config_of(mel)
        kwargs.setdefault("feature_size", config.num_mel_bins)
        kwargs.setdefault("sampling_rate", config.sampling_rate)
        kwargs.setdefault("padding_value", config.floor_value)
        super().__init__(**kwargs)
        self.mel = config.to_dict()

    @property
    def mel_config(self) -> MelConfig:
        """The mel contract."""
        return MelConfig.from_dict(self.mel)

    def __call__(
        self,
        waveform: np.ndarray | torch.Tensor | Sequence[np.ndarray] | Sequence[torch.Tensor],
        sampling_rate: int | None = None,
    ) -> BatchFeature:
        """Features of one waveform (samples,) or of a list of them.

        Args:
            waveform: mono floating point audio, full scale at 1, one (samples,) array or a sequence of such.
            sampling_rate: its samples per second; must be the contract's.

        Returns:
            BatchFeature of `input_features` (batch, mel, frame), filled up with silence, and `num_frames` (batch,).

        Raises:
            ValueError: missing or other sampling rate, more than one channel, empty, too short, integer or not finite.
        """
        config = self.mel_config
        if sampling_rate != config.sampling_rate:
            raise ValueError(
                f"sampling_rate must be {config.sampling_rate}, the rate of this mel contract, got {sampling_rate}. "
                "Resample first, for example with melreformer_hf.audio.io.resample."
            )
        rows = [waveform] if _is_one(waveform) else list(waveform)
        if not rows:
            raise ValueError("waveform must hold at least one recording, got an empty list.")
        mels = [log_mel_spectrogram(check_waveform(row), config) for row in rows]
        longest = max(mel.shape[-1] for mel in mels)
        features = torch.full((len(mels), config.num_mel_bins, longest), config.floor_value)
        for row, mel in zip(features, mels, strict=True):
            row[:, : mel.shape[-1]] = mel
        frames = torch.tensor([mel.shape[-1] for mel in mels])
        return BatchFeature({"input_features": features, "num_frames": frames})


def _is_one(waveform: object) -> bool:
    return isinstance(waveform, (np.ndarray, torch.Tensor)) and waveform.ndim <= 1


def check_waveform(waveform: np.ndarray | torch.Tensor | Sequence[float]) -> torch.Tensor:
    """A mono floating point waveform as a float32 tensor, or a ValueError that says what is wrong with it."""
    if isinstance(waveform, np.ndarray) and any(stride < 0 for stride in waveform.strides):
        waveform = waveform.copy()  # a reversed view; tensors have none
    try:
        tensor = torch.as_tensor(waveform)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"waveform must be an array or a tensor of samples, got {type(waveform).__name__} ({error}). Read files with "
            "melreformer_hf.audio.io.read_audio(path)."
        ) from error
    if tensor.numel() == 0:
        raise ValueError("waveform must not be empty.")
    if tensor.ndim != 1:
        raise ValueError(
            f"waveform must be mono with shape (samples,), got shape {tuple(tensor.shape)}.{_channel_advice(tensor)}"
        )
    if not tensor.is_floating_point():
        advice = ""
        if tensor.dtype in (torch.int16, torch.int32):
            advice = f" Divide it by {-torch.iinfo(tensor.dtype).min}."
        raise ValueError(f"waveform must be floating point with full scale at 1, got {tensor.dtype}.{advice}")
    if not tensor.isfinite().all():
        raise ValueError("waveform must be finite, got NaN or infinite samples.")
    tensor = tensor.float()
    if not tensor.isfinite().all():
        raise ValueError("waveform must fit into float32 with full scale at 1, got larger samples.")
    return tensor


def _channel_advice(tensor: torch.Tensor) -> str:
    if tensor.ndim != 2:
        return ""
    axis = 0 if tensor.shape[0] <= tensor.shape[1] else 1  # there are more samples than channels
    return f" Mix channels down first, for example with waveform.mean({axis})."


__all__ = ["MelFeatureExtractor", "check_waveform"]
