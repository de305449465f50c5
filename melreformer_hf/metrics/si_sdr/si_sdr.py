"""SI-SDR as a module of `evaluate`: `evaluate.load` reads this folder, or a Space with its files."""

import math

import datasets
import evaluate

import melreformer_hf.metrics as metrics
import melreformer_hf.metrics.reading as reading

DESCRIPTION = """
Scale-invariant signal-to-distortion ratio in dB, for separated sources and codecs that keep phases. No mean is
subtracted. Recordings whose reference is silent have no ratio and are left out of the mean.
"""

INPUTS = """
Args:
    predictions: list of waveforms, each a list of samples with full scale at 1.
    references: list of the true waveforms, of the same lengths.

Returns:
    si_sdr: mean over recordings in dB, higher is better; n: recordings that counted.
"""


class SiSdr(evaluate.Metric):
    """Scale-invariant signal-to-distortion ratio in dB."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="Le Roux, Wisdom, Erdogan, Hershey: SDR - half-baked or well done?, arXiv 1811.02508",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Sequence(datasets.Value("float32")),
                }
            ),
        )

    def _compute(self, predictions: list, references: list) -> dict:
        values = [metrics.si_sdr(made, real).item() for made, real in reading.pairs(predictions, references)]
        counted = [value for value in values if not math.isnan(value)]
        return {"si_sdr": sum(counted) / len(counted) if counted else math.nan, "n": len(counted)}
