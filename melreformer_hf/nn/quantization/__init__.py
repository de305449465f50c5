"""Quantizers: hidden vectors to codes and back, with one contract.

Every quantizer has `forward(hidden (batch, dim, frame), num_quantizers=None) -> QuantizerOutput`,
`encode(hidden, num_quantizers=None) -> (batch, quantizer, frame)` and `decode(audio_codes) -> (batch, dim, frame)`.
"""

from melreformer_hf.nn.quantization.codebook import Codebook
from melreformer_hf.nn.quantization.grids import fold_grid, unfold_grid
from melreformer_hf.nn.quantization.kmeans import kmeans
from melreformer_hf.nn.quantization.options import CodebookOptions
from melreformer_hf.nn.quantization.output import QuantizerOutput
from melreformer_hf.nn.quantization.residual import ResidualVectorQuantizer, VectorQuantizer
from melreformer_hf.nn.quantization.search import nearest_codes
from melreformer_hf.nn.quantization.som import SomQuantizer
from melreformer_hf.nn.quantization.som_codebook import Neighbourhood
from melreformer_hf.nn.quantization.topology import TopologyOutput

__all__ = [
    "Codebook",
    "CodebookOptions",
    "Neighbourhood",
    "QuantizerOutput",
    "ResidualVectorQuantizer",
    "SomQuantizer",
    "TopologyOutput",
    "VectorQuantizer",
    "fold_grid",
    "kmeans",
    "nearest_codes",
    "unfold_grid",
]
