"""Recordings to vocals and instrumental."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
import torch

from melreformer_hf.audio.io import audio_info, stream_audio
from melreformer_hf.nn.stems import Stems
from melreformer_hf.pipelines.outputs import SeparationOutput
from melreformer_hf.pipelines.pipeline_separation import SeparationPipeline
from melreformer_hf.pipelines.separating import check_channels
from melreformer_hf.pipelines.stem_pictures import StemPictures
from melreformer_hf.plotting import panels_picture
from melreformer_space.limits import MAX_SECONDS, MAX_UPLOAD_MEGABYTES, check_upload, refusal
from melreformer_space.sound import Files, rate_words

_BLOCK_FRAMES = 128  # some seconds: what comes between two looks at Stop


class ShownStems(NamedTuple):
    """What changes on the page in one step."""

    vocals: Any = gr.skip()
    instrumental: Any = gr.skip()
    picture: Any = gr.skip()
    status: Any = gr.skip()


class StemPlayer:
    """Separates recordings of visitors.

    Args:
        pipe: separates.
        files: where the stems go.
    """

    def __init__(self, pipe: SeparationPipeline, files: Files) -> None:
        self.pipe, self.files = pipe, files

    def separate(self, recording: str | None, stopped: Callable[[], bool]) -> Iterator[ShownStems]:
        """Both stems of a recording, and a picture of them."""
        rate, channels, pieces = self._opened(recording)
        length, made, started = sum(piece.shape[-1] for piece in pieces), [], time.perf_counter()
        pictures = StemPictures(rate, length)
        yield ShownStems(None, None, None, "Listening")
        for stems in self.pipe.stream(iter(pieces), rate, channels, _BLOCK_FRAMES):
            if stopped():
                yield ShownStems(status="**Stopped**; nothing was kept.")
                return
            made.append(stems)
            pictures.add(stems)
            done = sum(part.vocals.shape[-1] for part in made) / rate
            yield ShownStems(status=f"Separated {done:.1f} of {length / rate:.1f} s")
        whole = Stems(*(torch.cat(parts, dim=-1) for parts in zip(*made, strict=True)))
        vocals, instrumental = SeparationOutput(*whole, rate).save(self.files.place("stems"))
        took, seconds = time.perf_counter() - started, length / rate
        told = f"**{seconds:.1f} s separated in {took:.1f} s**, {rate_words(seconds / took)}. The two add up to the recording."
        picture = np.asarray(panels_picture(pictures.panels(), pictures.config))
        yield ShownStems(str(vocals), str(instrumental), picture, told)

    def _opened(self, recording: str | None) -> tuple[int, int, list[np.ndarray]]:
        """Rate, channels and pieces of an upload, or an error that the visitor sees."""
        path = check_upload(recording, "Upload or record something", MAX_UPLOAD_MEGABYTES)
        try:
            rate, channels, samples = audio_info(path)
            check_channels(channels, path.name)
            if samples > MAX_SECONDS * rate:
                raise ValueError(f"{path.name} lasts {samples / rate:.0f} s; at most {MAX_SECONDS} s are accepted.")
            pieces = list(stream_audio(path, channels)[1])
            if not pieces:
                raise ValueError(f"{path.name} holds no samples.")
        except (ValueError, FileNotFoundError) as error:
            raise refusal(str(error).replace(str(path), path.name)) from error
        return rate, channels, pieces


__all__ = ["ShownStems", "StemPlayer"]
