"""Drift as a module of `evaluate`: `evaluate.load` reads this folder, or a Space with its files."""

import datasets
import evaluate

import melreformer_hf.metrics as metrics
import melreformer_hf.metrics.reading as reading

DESCRIPTION = """
Mean absolute error of log-mels in the last quarter of the pieces divided by that in the first quarter: above 1
where errors pile up while a model continues what it wrote itself.
"""

INPUTS = """
Args:
    predictions: list of log-mels, each bands x frames.
    references: list of the true log-mels, of the same shapes.
    share: of each piece that counts as beginning and as end, at most 0.5.

Returns:
    drift: 1 where the end is as good as the beginning.
"""


class Drift(evaluate.Metric):
    """Error of free-running generation at the end of pieces relative to their beginning."""

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

    def _compute(self, predictions: list, references: list, share: float = 0.25) -> dict:
        pairs = reading.pairs(predictions, references)
        return {"drift": metrics.drift([made for made, _ in pairs], [real for _, real in pairs], share)}
