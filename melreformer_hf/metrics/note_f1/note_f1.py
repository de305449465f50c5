"""Note F1 as a module of `evaluate`: `evaluate.load` reads this folder, or a Space with its files."""

import datasets
import evaluate
import numpy as np

import melreformer_hf.metrics as metrics

DESCRIPTION = """
Precision, recall and F1 of transcribed notes, as mir_eval counts them: a note is heard when its pitch is right and its
onset within 50 ms. offset_: its end also lies within 50 ms, or a fifth of its length, of the true end. velocity_: its
velocity is also within a tenth of the true one's range, after the best linear fit. Means over pieces.
"""

INPUTS = """
Args:
    predictions: list of pieces, each a list of notes [onset, end, pitch, velocity] with times in seconds.
    references: list of the same pieces as they were played.
    onset_tolerance_in_s: how far an onset may be off.

Returns:
    onset_precision, onset_recall, onset_f1, and the same of offset_, velocity_ and offset_velocity_.
"""


class NoteF1(evaluate.Metric):
    """Transcribed notes against those that were played: onsets, ends and velocities."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="Raffel et al.: mir_eval, a transparent implementation of common MIR metrics, ISMIR 2014",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Sequence(datasets.Value("float64"))),
                    "references": datasets.Sequence(datasets.Sequence(datasets.Value("float64"))),
                }
            ),
        )

    def _compute(self, predictions: list, references: list, onset_tolerance_in_s: float = 0.05) -> dict:
        pairs = zip(predictions, references, strict=True)
        pieces = [[np.array(side, dtype=float).reshape(-1, 4) for side in pair] for pair in pairs]
        return metrics.mean_scores([metrics.transcription_scores(*pair, onset_tolerance_in_s) for pair in pieces])
