"""Continuous ranked probability score as a module of `evaluate`: `evaluate.load` reads this folder, or a Space with its files."""

import datasets
import evaluate

import melreformer_hf.metrics as metrics
import melreformer_hf.metrics.reading as reading

DESCRIPTION = """
mean |x_i - y| - 1 / (2 m (m - 1)) sum over i != j of |x_i - x_j| for m draws x_i and what really came, y, averaged
over numbers and rows. It is a proper score: the true distribution has the lowest. Of a single draw it is the L1
distance, so that samplers and regressors compare; the L1 distance of single draws would favor blur.
"""

INPUTS = """
Args:
    predictions: list of rows, each draws x numbers; every row of at least one draw.
    references: list of rows of numbers, what really came.

Returns:
    crps: in the unit of the numbers, lower is better.
"""


class Crps(evaluate.Metric):
    """What the draws of a sampler are worth; of one draw the L1 distance."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="Gneiting and Raftery: Strictly proper scoring rules, prediction, and estimation, JASA 2007",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
                    "references": datasets.Sequence(datasets.Value("float32")),
                }
            ),
        )

    def _compute(self, predictions: list, references: list) -> dict:
        values = [metrics.crps(draws, real).item() for draws, real in reading.pairs(predictions, references)]
        return {"crps": sum(values) / len(values)}
