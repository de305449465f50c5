"""Use and perplexity of codebooks as a module of `evaluate`: `evaluate.load` reads this folder, or a Space with its files."""

import datasets
import evaluate

import melreformer_hf.metrics as metrics
import melreformer_hf.metrics.reading as reading

DESCRIPTION = """
For every quantizer of a codec or tokenizer: the share of its codewords that occur, and the perplexity (exponential
of the entropy) of their use. Perplexity near the size of the codebook means that it is used evenly; a collapsed
codebook has 1.
"""

INPUTS = """
Args:
    predictions: list of recordings, each quantizers x frames of codes, -1 where a level was left out.
    codebook_size: codewords per quantizer.

Returns:
    usage: list, 0 to 1 per quantizer; perplexity: list, 1 to codebook_size per quantizer.
"""


class CodebookUsage(evaluate.Metric):
    """Share of codewords that occur, and perplexity of their use, per quantizer."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Sequence(datasets.Value("int64"))),
                }
            ),
        )

    def _compute(self, predictions: list, codebook_size: int) -> dict:
        codes = reading.joined_codes(predictions)
        return {
            "usage": metrics.codebook_usage(codes, codebook_size).tolist(),
            "perplexity": metrics.codebook_perplexity(codes, codebook_size).tolist(),
        }
