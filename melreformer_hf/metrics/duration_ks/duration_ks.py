"""Kolmogorov-Smirnov statistic of durations as a module of `evaluate`: `evaluate.load` reads this folder, or a Space with its files."""

import datasets
import evaluate
import torch

import melreformer_hf.metrics as metrics

DESCRIPTION = """
Two-sample Kolmogorov-Smirnov statistic of durations: the largest gap between the two empirical distribution
functions. 0 means that durations are distributed alike, 1 that they do not overlap.
"""

INPUTS = """
Args:
    predictions: list of generated durations, in any unit.
    real: list of real durations in the same unit.

Returns:
    duration_ks: 0 to 1, lower is better.
"""


class DurationKs(evaluate.Metric):
    """Largest gap between the distribution functions of generated and real durations."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("float64"),
                }
            ),
        )

    def _compute(self, predictions: list, real: list) -> dict:
        made, wanted = torch.tensor(predictions, dtype=torch.float64), torch.tensor(real, dtype=torch.float64)
        return {"duration_ks": metrics.duration_ks(made, wanted)}
