"""Quantizers: hidden vectors to codes and back, with one contract.

Every quantizer has `forward(hidden (batch, dim, frame), num_quantizers=None) -> QuantizerOutput`,
`encode(hidden, num_quantizers=None) -> (batch, quantizer, frame)` and `decode(audio_codes) -> (batch, dim, frame)`.
"""

from melreformer_hf.nn.quantization.codebook import Codebook
from melreformer_hf.nn.quantization.options import CodebookOptions
from melreformer_hf.nn.quantization.output import QuantizerOutput
from melreformer_hf.nn.quantization.residual import ResidualVectorQuantizer, VectorQuantizer

__all__ = ["Codebook", "CodebookOptions", "QuantizerOutput", "ResidualVectorQuantizer", "VectorQuantizer"]
