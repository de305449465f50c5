"""Bits per second of codes as a module of `evaluate`: `evaluate.load` reads this folder, or a Space with its files."""

import datasets
import evaluate

import melreformer_hf.metrics as metrics
import melreformer_hf.metrics.reading as reading

DESCRIPTION = """
Bit rate of codes: nominal (log2 of the codebook's size for every code) and with an ideal entropy coder that has
one fixed table per quantizer (the entropy of code use).
"""

INPUTS = """
Args:
    predictions: list of recordings, each quantizers x frames of codes.
    codebook_size: codewords per quantizer.
    frame_rate: frames of codes per second.

Returns:
    bits_per_second, entropy_bits_per_second: lower is cheaper.
"""


class BitsPerSecond(evaluate.Metric):
    """Nominal bit rate of codes, and that of an ideal entropy coder."""

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

    def _compute(self, predictions: list, codebook_size: int, frame_rate: float) -> dict:
        codes = reading.joined_codes(predictions)
        return {
            "bits_per_second": metrics.bits_per_second(frame_rate, codebook_size, codes.shape[1]),
            "entropy_bits_per_second": metrics.entropy_bits_per_second(codes, codebook_size, frame_rate),
        }
