"""Seams between windows as a module of `evaluate`: `evaluate.load` reads this folder, or a Space with its files."""

import datasets
import evaluate

import melreformer_hf.metrics as metrics
import melreformer_hf.metrics.reading as reading

DESCRIPTION = """
Mean absolute change of log-mels across the borders of the windows they were generated in, relative to the change
inside the windows, divided by the same ratio of the real mels. 1 means that borders cannot be told.
"""

INPUTS = """
Args:
    predictions: list of log-mels, each bands x frames.
    references: list of the true log-mels, of the same shapes.
    period: frames per window, at least 2.

Returns:
    seam: 1 without seams, above 1 with them.
"""


class Seam(evaluate.Metric):
    """Change across the borders of generation windows, relative to the change inside them."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
                    "references": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
                }
            ),
        )

    def _compute(self, predictions: list, references: list, period: int) -> dict:
        pairs = reading.pairs(predictions, references)
        return {"seam": metrics.seam([made for made, _ in pairs], period, [real for _, real in pairs])}
