"""Sharpness of mels as a module of `evaluate`: `evaluate.load` reads this folder, or a Space with its files."""

import datasets
import evaluate

import melreformer_hf.metrics as metrics
import melreformer_hf.metrics.reading as reading

DESCRIPTION = """
Mean squared change of log-mels from frame to frame (time) and from band to band (frequency), divided by that of
the real ones: 1 is as sharp as music, less is blurred, more is noisy. Counted over audible bins only (within 60 dB
of the piece's loudest bin), and over all bins.
"""

INPUTS = """
Args:
    predictions: list of log-mels, each bands x frames.
    references: list of the true log-mels, of the same shapes.
    mel: preset of MelConfig or a dictionary of its fields; says what a decibel is.
    audible_db: range that counts as audible.

Returns:
    sharpness_time, sharpness_frequency: over audible bins; sharpness_time_all_bins, sharpness_frequency_all_bins.
"""


class Sharpness(evaluate.Metric):
    """Energy of the change from bin to bin of log-mels, relative to real music."""

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

    def _compute(
        self, predictions: list, references: list, mel: str | dict = "melreformer", audible_db: float = 60.0
    ) -> dict:
        pairs = reading.pairs(predictions, references)
        made, real = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        config, found = reading.mel_config(mel), {}
        for axis in ("time", "frequency"):
            found[f"sharpness_{axis}"] = metrics.sharpness(made, real, config, axis=axis, audible_db=audible_db)
            found[f"sharpness_{axis}_all_bins"] = metrics.sharpness(made, real, axis=axis, audible_db=None)
        return found
