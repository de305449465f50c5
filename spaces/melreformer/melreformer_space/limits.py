"""What visitors may ask for and send, and the words in which everything else is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import torch

from melreformer_hf.audio.io import read_audio
from melreformer_hf.pipelines.composing import Score
from melreformer_hf.pipelines.hearing import score_end, score_of
from melreformer_hf.processing.midi.notes import DRUMS

MIN_SECONDS, MAX_SECONDS = 1, 120
MAX_UPLOAD_MEGABYTES = 20
# Of MIDI files: a piano piece of five minutes has some thousand notes and some ten kilobytes.
MAX_MIDI_SECONDS, MAX_MIDI_NOTES, MAX_MIDI_MEGABYTES = 300, 20_000, 1
MAX_INSTRUMENTS = 14  # a file has 15 channels beside the drums', and new notes may need one
NEW_SECONDS = (1, 60)  # that are written after a file's end
MAX_SEED = 2**31 - 1
STEPS = (4, 50)
STRETCH = (0.25, 4.0)
ADDED_SECONDS = (0, 60)  # before and after an extended recording
SEAM_SECONDS = (0.5, 10.0)
TEMPERATURE = (0.5, 1.5)
TOP_P = (0.5, 1.0)


def refusal(message: str) -> gr.Error:
    """An error for the visitor to read; the log stays free of it."""
    return gr.Error(message, duration=20, print_exception=False)


def checked(function: Callable):
    """What a function returns; its ValueError as a refusal."""
    try:
        return function()
    except ValueError as error:
        raise refusal(str(error)) from error


def check_number(name: str, value: object, low: float, high: float, whole: bool = False) -> float:
    """A number between limits, or an error that the visitor, or the program that asks, reads."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise refusal(f"{name} must be {kind} from {low:g} to {high:g}, got {value!r}.")
    return int(value) if whole else float(value)


def check_drawing(temperature: object, top_p: object) -> dict[str, float]:
    """How notes are drawn, as arguments of the pipeline."""
    return {
        "temperature": check_number("The temperature", temperature, *TEMPERATURE),
        "top_p": check_number("The share of likely notes", top_p, *TOP_P),
    }


def choose_seed(seed: object, new_seed: object) -> int:
    """The seed that was asked for, or a new one."""
    if not isinstance(new_seed, bool):
        raise refusal(f"Whether there is a new seed must be true or false, got {new_seed!r}.")
    if new_seed:
        return random.SystemRandom().randrange(MAX_SEED)
    return int(check_number("The seed", seed, 0, MAX_SEED, whole=True))


def check_upload(file: object, what: str, megabytes: float) -> Path:
    """The path of an uploaded file that is not too large."""
    if file is None:
        raise refusal(f"{what} first.")
    if not isinstance(file, str) or not Path(file).is_file():
        raise refusal(f"{what} first: one file, got {type(file).__name__}.")
    name, size = Path(file).name, Path(file).stat().st_size / 1e6
    if size > megabytes:
        raise refusal(f"{name} has {size:.1f} MB; at most {megabytes} MB are accepted.")
    return Path(file)


def read_recording(recording: str | None, rate: int) -> torch.Tensor:
    """The uploaded recording as (samples,), or an error that the visitor sees."""
    path = check_upload(recording, "Upload or record something", MAX_UPLOAD_MEGABYTES)
    try:
        return read_audio(path, rate, max_seconds=MAX_SECONDS)[0]
    except (ValueError, FileNotFoundError) as error:
        raise refusal(str(error).replace(str(path), path.name)) from error


def read_piece(file: str | None) -> Score:
    """The notes and pedal of an uploaded MIDI file, or an error that the visitor sees."""
    path = check_upload(file, "Upload a MIDI file", MAX_MIDI_MEGABYTES)
    try:
        score = score_of(path)
    except (ValueError, FileNotFoundError) as error:
        raise refusal(str(error).replace(str(path), path.name)) from error
    if len(score.notes) > MAX_MIDI_NOTES:
        raise refusal(f"{path.name} has {len(score.notes)} notes; at most {MAX_MIDI_NOTES} are accepted.")
    if len({note.instrument for note in score.notes} - {DRUMS}) > MAX_INSTRUMENTS:
        raise refusal(
            f"{path.name} has more than {MAX_INSTRUMENTS} instruments, which a file with new notes cannot hold."
        )
    if (seconds := score_end(*score)) > MAX_MIDI_SECONDS:
        raise refusal(f"{path.name} lasts {seconds:.0f} s; at most {MAX_MIDI_SECONDS} s are accepted.")
    return score
