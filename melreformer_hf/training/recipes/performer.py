"""Recipe `performer`: notes to log-mels, learned from music that was played from them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import torch
from torch import nn

from melreformer_hf._text import duration_in_words
from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram
from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.data.performances import PerformanceStore
from melreformer_hf.data.performing import KEYS_ALONE
from melreformer_hf.data.streams import ItemStream
from melreformer_hf.metrics import log_mel_l1, sharpness
from melreformer_hf.models.note_performer.blocks_note_performer import NoteSounds, interpolated
from melreformer_hf.models.note_performer.configuration_note_performer import NotePerformerConfig
from melreformer_hf.models.note_performer.modeling_note_performer import NotePerformerModel
from melreformer_hf.nn.sounding import SoundingNotes
from melreformer_hf.plotting import stack_mels
from melreformer_hf.training.config import TrainingConfig, option
from melreformer_hf.training.recipes.audio import AudioOptions
from melreformer_hf.training.recipes.base import Phase, Recipe, StepContext, Trainable, Validation

# Frames at either end of a crop whose windows are filled by reflection.
_EDGE_FRAMES = 2
# The idea that the validation is compared with has so many columns per frame: 256 in 24 s.
_COLUMNS_PER_FRAME = 256 / 2067
# Calibration looks at a recording this many times in a hop.
_FINER = 4
_LEAD_SECONDS = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerformerOptions(AudioOptions):
    """Settings of the performer's recipe.

    Raises:
        ValueError: a field breaks its rule.
    """

    preset: str = option("tiny", "preset of NotePerformerConfig that --model.NAME values change")
    crop_frames: int = option(256, "frames of a training item")
    calibrate: bool = option(True, "begin with the spectra of the keys that the dataset has alone")
    change_weight: float = option(
        0.0, "weight of the L1 distance of changes from frame to frame, beside that of frames"
    )
    sharpness_weight: float = option(0.0, "weight of the distance between the energies of these changes")
    validation_pieces: int = option(16, "held-out pieces that are measured")
    validation_frames: int = option(2584, "frames of each, from its beginning")

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = (
            ("crop_frames", self.crop_frames >= 2, "be at least 2"),
            ("change_weight", self.change_weight >= 0, "not be negative"),
            ("sharpness_weight", self.sharpness_weight >= 0, "not be negative"),
            ("validation_pieces", self.validation_pieces >= 1, "be at least 1"),
            ("validation_frames", self.validation_frames >= 2, "be at least 2"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise ValueError(f"options.{name} must {rule}, got {getattr(self, name)!r}.")


class PerformerRecipe(Recipe):
    """Train the performer (NotePerformerModel): notes to the log-mel of the music that is played from them."""

    name = "performer"
    best_metric = "mel_l1"
    reads_performances = True
    Options = PerformerOptions

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self.model_config = NotePerformerConfig.preset(self.options.preset, **config.model)
        self.mel: MelConfig = self.model_config.mel_config
        self.validation_split: str = self.options.validation_split
        self._stores: dict[str, PerformanceStore] = {}
        self._held_out: list[tuple[SoundingNotes, torch.Tensor]] = []
        self._memory = 0.0

    def store(self, split: str) -> PerformanceStore:
        """The performances of a split, opened once.

        Raises:
            ValueError: no such dataset or split, or another sampling rate than that of the mel contract.
        """
        if split not in self._stores:
            self._stores[split] = PerformanceStore(
                self.config.dataset, split, self.mel.sampling_rate, self.config.cache_minutes
            )
        return self._stores[split]

    def trainables(self) -> dict[str, Trainable]:
        model = NotePerformerModel(self.model_config)
        self._memory = model.memory_in_s
        store = self.store("train")
        if self.options.calibrate and self.config.init_from is None and KEYS_ALONE in store.notes:
            calibrate(model.sounds, store, self.mel)
        return {"model": Trainable(model)}

    def stream(self, rank: int, world_size: int) -> ItemStream:
        samples = (self.options.crop_frames + 2 * _EDGE_FRAMES) * self.mel.hop_length
        return self.store("train").crops(samples, seed=self.config.seed, rank=rank, world_size=world_size)

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        waveform, notes = item["waveform"], item["notes"]
        heard = (notes.release > -self._memory) & (notes.onset < len(waveform) / self.mel.sampling_rate)
        mel = log_mel_spectrogram(waveform, self.mel)
        return {**padded_notes(notes.where(heard)), "labels": mel[:, _EDGE_FRAMES:-_EDGE_FRAMES]}

    def phases(self, batch: dict[str, torch.Tensor], context: StepContext) -> Iterator[Phase]:
        labels = batch["labels"]
        notes = {name: batch[name] for name in ("onset", "release", "pitch", "velocity")}
        output = self.modules["model"](**notes, num_frames=labels.shape[-1], first_frame=_EDGE_FRAMES)
        made = output.log_mel.float()
        error, changes = (made - labels).abs().mean(), (made.diff(dim=-1), labels.diff(dim=-1))
        loss, scalars = error, {"mel_l1": error}
        if self.options.change_weight:
            scalars["change_l1"] = (changes[0] - changes[1]).abs().mean()
            loss = loss + self.options.change_weight * scalars["change_l1"]
        if self.options.sharpness_weight:
            energies = [change.square().mean((0, 2)) + 1e-4 for change in changes]  # (mel,)
            # As a logarithm: half and double are equally wrong.
            scalars["sharpness_distance"] = (energies[0] / energies[1]).log().abs().mean()
            loss = loss + self.options.sharpness_weight * scalars["sharpness_distance"]
        yield Phase("model", loss, {"loss": loss, **scalars})

    def prepare_validation(self) -> None:
        if self._held_out:
            return
        store = self.store(self.validation_split)
        step = max(1, len(store.recordings) // self.options.validation_pieces)
        for recording in store.recordings[::step][: self.options.validation_pieces]:
            frames = min(self.options.validation_frames, recording.num_samples // self.mel.hop_length)
            item = store.item_of(recording, 0, frames * self.mel.hop_length)
            self._held_out.append((item["notes"], log_mel_spectrogram(item["waveform"], self.mel)))

    def validate(self, model: nn.Module) -> Validation:
        self.prepare_validation()
        started, targets = time.monotonic(), [mel for _, mel in self._held_out]
        made = [model.perform(notes, mel.shape[-1])[0].float().cpu() for notes, mel in self._held_out]
        seconds = time.monotonic() - started
        columns = [max(1, round(mel.shape[-1] * _COLUMNS_PER_FRAME)) for mel in targets]
        blurred = [
            resize_mel(resize_mel(mel, count), mel.shape[-1]) for mel, count in zip(targets, columns, strict=True)
        ]
        error, baseline = (
            sum(log_mel_l1(one[None], mel[None]).item() for one, mel in zip(mels, targets, strict=True)) / len(targets)
            for mels in (made, blurred)
        )
        metrics = {
            "mel_l1": error,
            "baseline": baseline,
            "ratio": error / baseline,
            "sharpness": sharpness(made, targets, self.mel),
            "sharpness_frequency": sharpness(made, targets, self.mel, axis="frequency"),
            "times_real_time": sum(mel.shape[-1] for mel in targets) / self.mel.frame_rate / max(seconds, 1e-9),
        }
        pictures = {"true_performed": stack_mels([mel[:, :1024] for mel in (targets[0], made[0])])}
        summary = f"{error:.3f} nats, {metrics['ratio']:.2f}x of a re-interpolated idea"
        return Validation(metrics, pictures, summary=summary, counts={"pieces": len(targets)})

    def describe_data(self) -> str:
        return f"{duration_in_words(60 * self.store('train').hours)} of performances"

    def check_start(self, pretrained: nn.Module) -> None:
        pretrained.config.mel_config.check_matches(self.mel, "init_from", "this training")


def padded_notes(notes: SoundingNotes) -> dict[str, torch.Tensor]:
    """Columns of notes as tensors (note,), and one of velocity 0 behind them, so that there is always one."""
    columns = {"onset": notes.onset, "release": notes.release, "pitch": notes.pitch, "velocity": notes.velocity}
    kinds = {"onset": torch.float32, "release": torch.float32}
    tensors = {name: torch.as_tensor(column).to(kinds.get(name, torch.int64)) for name, column in columns.items()}
    return {name: torch.cat([tensor, tensor.new_zeros(1)]) for name, tensor in tensors.items()}


@torch.no_grad()
def calibrate(sounds: NoteSounds, store: PerformanceStore, mel: MelConfig) -> None:
    """Fill the table of single notes with what the dataset's recording of single keys has.

    Around each moment of the table energies are averaged halfway to its neighbors; what the velocity adds is taken off.
    Keys and ages that the recording does not have, or after the key went up, stay as they are.

    Args:
        sounds: its `level` is changed.
        store: has the recording `KEYS_ALONE`.
        mel: the contract.
    """
    recording = next(item for item in store.recordings if item.name == KEYS_ALONE)
    notes, rate, config = store.notes[KEYS_ALONE], store.sampling_rate, sounds.config
    fine = dataclasses.replace(
        MelConfig.preset("hifigan"),
        **{
            name: getattr(mel, name)
            for name in ("sampling_rate", "n_fft", "win_length", "num_mel_bins", "fmin", "fmax")
        },
        hop_length=mel.hop_length // _FINER,
    )
    ages = sounds.ages().double()
    limits = torch.cat([ages[:1], (ages[1:] + ages[:-1]) / 2, ages[-1:]])
    table = sounds.level.view(config.num_keys, config.num_ages, -1)
    frames = (_LEAD_SECONDS + limits) * rate / fine.hop_length - 0.5
    first, last = frames[:-1].round().long().clamp(min=0), frames[1:].round().long().clamp(min=0)
    for onset, release, pitch, velocity in zip(*dataclasses.astuple(notes), strict=True):
        start, end = round((onset - _LEAD_SECONDS) * rate), min(release, onset + config.last_age_in_s)
        length = min(round(end * rate), recording.num_samples) - start
        if start < 0 or not 0 <= pitch - config.lowest_key < config.num_keys:
            continue
        energy = (2 * log_mel_spectrogram(store.audio.read(recording, start, length), fine)).exp()  # (mel, frame)
        sums = torch.cat([energy.new_zeros(len(energy), 1, dtype=torch.double), energy.double().cumsum(-1)], dim=-1)
        known = first < energy.shape[-1]
        begin, end = first[known], torch.maximum(last, first + 1)[known].clamp(max=energy.shape[-1])
        mean = (sums[:, end] - sums[:, begin]) / (end - begin)
        place = torch.tensor(float(velocity)) * ((config.num_velocities - 1) / 128)
        loudness = interpolated(sounds.loudness.float(), place)
        # Less than the floor is silence, whatever it is.
        level = 0.5 * (mean.clamp(min=fine.log_floor**2)).log().float() - loudness
        table[int(pitch) - config.lowest_key, known] = level.T


__all__ = ["PerformerOptions", "PerformerRecipe", "calibrate", "padded_notes"]
