"""Frechet audio distance as a module of `evaluate`: `evaluate.load` reads this folder, or a Space with its files."""

import datasets
import evaluate

import melreformer_hf.metrics as metrics
import melreformer_hf.metrics.reading as reading

DESCRIPTION = """
Frechet distance between Gaussians fitted to embeddings of generated and of real recordings. It always prints how
many recordings there were, which embedding, and the floor: the distance between two random halves of the real
ones. The embedding is log-mel statistics (no download) or any audio model that AutoModel loads. The computation
stays exact for fewer recordings than features, but few recordings make every distance large; compare with the
floor, and only within one embedding.
"""

INPUTS = """
Args:
    predictions: list of generated waveforms, each a list of samples.
    real: list of real waveforms, at least four; as many as there are, and not those that were trained on.
    sampling_rate: samples per second of all of them.
    embedding: Hub id or folder of an audio model; None takes log-mel statistics.

Returns:
    frechet_audio_distance, floor, num_generated, num_real, embedding.
"""


class FrechetAudioDistance(evaluate.Metric):
    """Frechet distance of generated audio from real audio, with n, embedding and the real-against-real floor."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="Kilgour, Zuluaga, Roblek, Sharifi: Frechet audio distance, arXiv 1812.08466",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                }
            ),
        )

    def _compute(self, predictions: list, real: list, sampling_rate: int, embedding: str | None = None) -> dict:
        chosen = None if embedding is None else metrics.AudioModelEmbedding(embedding)
        made, wanted = reading.tensors(predictions), reading.tensors(real)
        result = metrics.frechet_audio_distance(made, wanted, sampling_rate, chosen)
        print(result)
        return {
            "frechet_audio_distance": result.distance,
            "floor": result.floor,
            "num_generated": result.num_generated,
            "num_real": result.num_reference,
            "embedding": result.embedding,
        }
