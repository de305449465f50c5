"""Multi-resolution STFT distance as a module of `evaluate`: `evaluate.load` reads this folder, or a Space with its files."""

import datasets
import evaluate

import melreformer_hf.metrics as metrics
import melreformer_hf.metrics.reading as reading

DESCRIPTION = """
Spectral convergence plus mean absolute difference of log magnitudes, averaged over several window lengths (hop: a
quarter of the window) and over recordings. Silent references do not make it explode: where the reference is more
than 20 dB softer than the prediction, the convergence is taken relative to a tenth of the prediction.
"""

INPUTS = """
Args:
    predictions: list of waveforms, each a list of samples with full scale at 1.
    references: list of the true waveforms, of the same lengths.
    windows: window lengths in samples, default 128, 256, 512, 1024, 2048.

Returns:
    multi_resolution_stft: 0 for equals, lower is better.
"""


class MultiResolutionStft(evaluate.Metric):
    """Spectral convergence plus log-magnitude distance over several window lengths."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="Yamamoto, Song, Kim: Parallel WaveGAN, arXiv 1910.11480",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Sequence(datasets.Value("float32")),
                }
            ),
        )

    def _compute(self, predictions: list, references: list, windows: tuple = (128, 256, 512, 1024, 2048)) -> dict:
        values = [
            metrics.multi_resolution_stft_distance(made[None], real[None], windows).item()
            for made, real in reading.pairs(predictions, references)
        ]
        return {"multi_resolution_stft": sum(values) / len(values)}
