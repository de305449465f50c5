"""Quantizers: hidden vectors to codes and back, with one contract.

Every quantizer has `forward(hidden (batch, dim, frame), num_quantizers=None) -> QuantizerOutput`,
`encode(hidden, num_quantizers=None) -> (batch, quantizer, frame)` and `decode(audio_codes) -> (batch, dim, frame)`.
None of them changes a codebook; that is done by `accumulate(output)` and `update_codebooks()`, called by the training.

`residual`: the quantizers. `codebook`: one level's codewords and how they learn (running means, gradient, restarts, k-means
start; sums over micro batches and processes). `som`: codebooks on a grid. `search`: nearest codes, k-means. `options`: the
arguments of learning.
"""

from melreformer_hf.nn.quantization.codebook import Codebook, CodebookInputs
from melreformer_hf.nn.quantization.options import CodebookOptions
from melreformer_hf.nn.quantization.residual import (
    CodebookModelMixin,
    QuantizerOutput,
    ResidualVectorQuantizer,
    VectorQuantizer,
    perplexity_of,
)
from melreformer_hf.nn.quantization.search import kmeans, nearest_codes
from melreformer_hf.nn.quantization.som import Neighborhood, SomQuantizer, TopologyOutput

__all__ = [
    "Codebook",
    "CodebookInputs",
    "CodebookModelMixin",
    "CodebookOptions",
    "Neighborhood",
    "QuantizerOutput",
    "ResidualVectorQuantizer",
    "SomQuantizer",
    "TopologyOutput",
    "VectorQuantizer",
    "kmeans",
    "nearest_codes",
    "perplexity_of",
]
