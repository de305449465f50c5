"""Nearest training neighbor as a module of `evaluate`: `evaluate.load` reads this folder, or a Space with its files."""

import datasets
import evaluate
import torch

import melreformer_hf.metrics as metrics

DESCRIPTION = """
Euclidean distance of every generated vector (an embedding, or a flattened mel) to the nearest training vector.
With held-out vectors their mean distance is told as well: generated items that are far nearer to the training set
than held-out ones are copies.
"""

INPUTS = """
Args:
    predictions: list of vectors of generated items.
    training: list of vectors of all training items.
    held_out: list of vectors of real items that were not trained on; optional.

Returns:
    nearest_neighbor_distance: mean; smallest; with held_out also held_out_distance and ratio (about 1 is good, near 0 means copies).
"""


class NearestNeighborDistance(evaluate.Metric):
    """Distance of generated items to the nearest training item: are they copies?"""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                }
            ),
        )

    def _compute(self, predictions: list, training: list, held_out: list | None = None) -> dict:
        known = torch.tensor(training)
        distances = metrics.nearest_neighbor_distance(torch.tensor(predictions), known)
        found = {"nearest_neighbor_distance": distances.mean().item(), "smallest": distances.min().item()}
        if held_out is not None:
            found["held_out_distance"] = metrics.nearest_neighbor_distance(torch.tensor(held_out), known).mean().item()
            found["ratio"] = found["nearest_neighbor_distance"] / found["held_out_distance"]
        return found
