"""From a folder of recordings, or of MIDI files, to the dataset that a training reads: made once, kept beside the output."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from melreformer_hf._files import partial_of
from melreformer_hf._text import duration_in_words
from melreformer_hf.audio.io import AUDIO_SUFFIXES
from melreformer_hf.data.building import BuildConfig, build_dataset
from melreformer_hf.data.metadata import default_metadata, read_metadata
from melreformer_hf.data.performances import NOTES_FILE
from melreformer_hf.data.performing import PerformanceConfig, build_performances
from melreformer_hf.data.rendering import MIDI_SUFFIXES, render_folder
from melreformer_hf.data.sequences import TOKENS_FILE
from melreformer_hf.data.shard_writing import DATASET_FILE
from melreformer_hf.data.sources import LABEL_OF_FOLDER
from melreformer_hf.data.tokenizing import TokenizeConfig, tokenize_folder
from melreformer_hf.training.config import TrainingConfig

CACHE = "datasets"
# What distributions install; the first is the one whose sound the bundled checkpoint knows.
SOUND_FONTS = (
    "/usr/share/sounds/sf2/FluidR3_GM.sf2",
    "/usr/share/soundfonts/FluidR3_GM.sf2",
    "/usr/share/sounds/sf2/default-GM.sf2",
    "/usr/share/soundfonts/default.sf2",
)
# Files by which the `datasets` library knows a dataset; such folders are streamed as they are.
_FOREIGN = ("*.parquet", "*.arrow", "*.tar", "*/metadata.jsonl", "*/metadata.csv", "dataset_dict.json", "train/*")


def dataset_of(config: TrainingConfig, sampling_rate: int, labelled: bool = False) -> str:
    """The dataset of a training: `config.dataset` itself, or what is built from it when it is a folder of files.

    Recordings are decoded and resampled, MIDI files are played by FluidSynth before that. The result lies in `datasets`
    beside `config.output_dir`, named after the folder and its content: it is found again by the next training, and made
    anew when files are added or changed, or played with another sound font. In several processes the first one of each machine builds, the others wait.

    Args:
        config: its `dataset`, `output_dir` and `soundfont` are read.
        sampling_rate: of the model's mel contract.
        labelled: whether recordings get a label: the column `label` of the folder's metadata, or else the name of the
            folder that each lies in.

    Returns:
        folder or Hub id of a dataset.

    Raises:
        ValueError: the folder holds nothing that can be trained on.
        FileNotFoundError: MIDI files, and no FluidSynth or no sound font.
    """
    folder = Path(config.dataset).expanduser()
    if not folder.is_dir() or is_dataset(folder):
        return str(folder) if folder.is_dir() else config.dataset
    recordings, scores = _files(folder, AUDIO_SUFFIXES), _files(folder, MIDI_SUFFIXES)
    files = recordings or scores
    if not files:
        kinds = ", ".join((*AUDIO_SUFFIXES, *MIDI_SUFFIXES))
        raise ValueError(f"dataset must be a dataset or a folder of recordings or MIDI files ({kinds}), got {folder}.")

    def build(output: Path) -> None:
        if recordings and scores:
            _say(f"{folder} has recordings: its {len(scores)} MIDI files are not used")
        _build(folder, files, output, sampling_rate, config.soundfont, label)

    label = LABEL_OF_FOLDER if labelled and not _tells_labels(folder) else None
    # Recordings sound as they are, whatever plays MIDI files.
    digest = _digest(folder, files, sampling_rate, None if recordings else config.soundfont)
    return _made_once(config, folder, f"labelled-{digest}" if label else digest, DATASET_FILE, build)


def notes_dataset_of(config: TrainingConfig, scheme: str = "notes") -> str:
    """The same for trainings that read notes or tokens: MIDI files are tokenized.

    Args:
        config: its `dataset` and `output_dir` are read.
        scheme: as of `melreformer data tokenize`.

    Raises:
        ValueError: the folder holds no MIDI files.
    """
    folder = Path(config.dataset).expanduser()
    if not folder.is_dir() or (folder / TOKENS_FILE).is_file():
        return str(folder) if folder.is_dir() else config.dataset
    files = _files(folder, MIDI_SUFFIXES)
    if not files:
        kinds = ", ".join(MIDI_SUFFIXES)
        raise ValueError(
            f"dataset must be one of `melreformer data tokenize --scheme {scheme}`, or a folder of MIDI files ({kinds}), "
            f"got {folder}."
        )

    def build(output: Path) -> None:
        _say(f"reading the notes of {len(files)} MIDI files in {folder} into {output}")
        report = tokenize_folder(folder, output, TokenizeConfig(scheme=scheme))
        if report["skipped"]:
            _say(f"{len(report['skipped'])} files could not be used; {output / 'report.json'} says why")

    return _made_once(config, folder, f"{scheme}-{_digest(folder, files)}", TOKENS_FILE, build)


def performances_of(config: TrainingConfig, sampling_rate: int) -> str:
    """The same for trainings that read performances: MIDI files are played, and their notes are kept beside the audio.

    Args:
        config: as of `dataset_of`.
        sampling_rate: of the model's mel contract.

    Returns:
        folder or Hub id of a dataset of performances.

    Raises:
        ValueError: the folder holds no MIDI files.
        FileNotFoundError: no FluidSynth or no sound font.
    """
    folder = Path(config.dataset).expanduser()
    if not folder.is_dir() or (folder / NOTES_FILE).is_file():
        return str(folder) if folder.is_dir() else config.dataset
    files = _files(folder, MIDI_SUFFIXES)
    if not files:
        kinds = ", ".join(MIDI_SUFFIXES)
        raise ValueError(
            f"dataset must be one of performances (with {NOTES_FILE}), or a folder of MIDI files ({kinds}), got {folder}."
        )

    def build(output: Path) -> None:
        font = find_soundfont(config.soundfont)
        _say(f"playing {len(files)} MIDI files in {folder} with {font} into {output}")
        workers = min(8, os.cpu_count() or 1)
        report = build_performances(
            folder, output, font, PerformanceConfig(sampling_rate=sampling_rate, workers=workers, overwrite=True)
        )
        for skipped in report["skipped"]:
            _say(f"left out {skipped['file']}: {skipped['reason']}")

    digest = _digest(folder, files, sampling_rate, config.soundfont)
    return _made_once(config, folder, f"performances-{digest}", NOTES_FILE, build)


def _made_once(config: TrainingConfig, folder: Path, name: str, complete: str, build: Callable[[Path], None]) -> str:
    """The dataset beside the output, built by the first process of a machine unless it is there already."""
    output = Path(config.output_dir).parent / CACHE / f"{folder.resolve().name}-{name}"
    if (output / complete).is_file():
        return str(output)
    if int(os.environ.get("LOCAL_RANK", "0")):
        while not (output / complete).is_file():  # the launcher ends this process should the first one fail
            time.sleep(1.0)
        return str(output)
    build(output)
    return str(output)


def is_dataset(folder: Path) -> bool:
    """Whether a folder is a dataset already: built by this package, or in a layout of the `datasets` library."""
    if (folder / DATASET_FILE).is_file():
        return True
    return any(next(folder.glob(pattern), None) for kind in _FOREIGN for pattern in (kind, f"data/{kind}"))


def find_soundfont(given: str | None) -> Path:
    """The sound font that plays MIDI files: the one given, or one that the system has.

    Raises:
        FileNotFoundError: none is given, and the system has none where distributions put them.
    """
    if given is not None:
        return Path(given).expanduser()
    found = next((Path(path) for path in SOUND_FONTS if Path(path).is_file()), None)
    if found is None:
        raise FileNotFoundError(
            "MIDI files need a sound font: give one with --soundfont FILE.sf2, or install FluidR3 (MIT licence), "
            "for example with `apt-get install fluidsynth fluid-soundfont-gm`."
        )
    return found


def _tells_labels(folder: Path) -> bool:
    """Whether the metadata of a folder have a column `label`."""
    metadata = default_metadata(folder)
    return metadata is not None and any(row.get("label") for row in read_metadata(metadata).values())


def _build(
    folder: Path, files: list[Path], output: Path, sampling_rate: int, soundfont: str | None, label: str | None
) -> None:
    workers = min(8, os.cpu_count() or 1)
    source, rendered = folder, None
    if files[0].suffix.lower() in MIDI_SUFFIXES:
        font = find_soundfont(soundfont)
        _say(f"playing {len(files)} MIDI files in {folder} with {font}")
        # Kept until the dataset is complete, so that a rendering that was interrupted goes on.
        source = rendered = partial_of(output).with_suffix(".wav")
        metadata = default_metadata(folder)
        report = render_folder(folder, rendered, font, metadata=metadata, sampling_rate=sampling_rate, workers=workers)
        for name, reason in report.failed:
            _say(f"left out {name}: {reason}")
    _say(f"building the dataset {output} from {source}")
    config = BuildConfig(sampling_rate=sampling_rate, workers=workers, label=label)
    report = build_dataset(source, output, config)
    for split, counts in report["splits"].items():
        _say(f"{split}: {counts['recordings']} recordings, {duration_in_words(60 * counts['hours'])}")
    for note in report["notes"]:
        _say(note)
    if report["skipped"]:
        _say(f"{len(report['skipped'])} files could not be used; {output / 'report.json'} says why")
    if rendered is not None:
        shutil.rmtree(rendered)


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes and not path.name.startswith("."))
    return sorted(found)


def _digest(folder: Path, files: list[Path], sampling_rate: int = 0, soundfont: str | None = None) -> str:
    metadata = default_metadata(folder)
    told = [str(sampling_rate)]
    if soundfont is not None:
        font = Path(soundfont)
        told.append(f"{font.name} {font.stat().st_size if font.is_file() else 0}")
    for path in [*files, *([metadata] if metadata else [])]:
        state = path.stat()
        told.append(f"{path.relative_to(folder).as_posix()} {state.st_size} {state.st_mtime_ns}")
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:10]


def _say(text: str) -> None:
    print(text, file=sys.stderr)


__all__ = ["CACHE", "SOUND_FONTS", "dataset_of", "find_soundfont", "is_dataset", "notes_dataset_of", "performances_of"]
