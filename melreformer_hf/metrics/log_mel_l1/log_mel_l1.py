"""Log-mel L1 as a module of `evaluate`: `evaluate.load` reads this folder, or a Space with its files."""

import datasets
import evaluate

import melreformer_hf.metrics as metrics
import melreformer_hf.metrics.reading as reading

DESCRIPTION = """
Mean absolute difference of log-mel spectrograms under a mel contract, in its log unit (nats for natural
logarithms). Every recording has the same weight. Low values mean the same energies at the same times; phases do
not count, and a blurred mel may have a lower distance than a sharp one that is slightly off: read it together with
sharpness.
"""

INPUTS = """
Args:
    predictions: list of waveforms, each a list of samples with full scale at 1.
    references: list of the true waveforms, of the same lengths.
    mel: preset of MelConfig ("melreformer", "hifigan", "melgan", "specvqgan") or a dictionary of its fields.

Returns:
    log_mel_l1: 0 for equals, lower is better.
"""


class LogMelL1(evaluate.Metric):
    """Mean absolute difference of log-mel spectrograms."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Sequence(datasets.Value("float32")),
                }
            ),
        )

    def _compute(self, predictions: list, references: list, mel: str | dict = "melreformer") -> dict:
        config = reading.mel_config(mel)
        values = [
            metrics.log_mel_l1(made[None], real[None], config).item()
            for made, real in reading.pairs(predictions, references)
        ]
        return {"log_mel_l1": sum(values) / len(values)}
