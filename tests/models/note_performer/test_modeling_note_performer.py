"""The performer's contract; that energies of notes add, what each table means, and streams of any cut."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from borders import check_borders, from_one
from huggingface_hub.errors import StrictDataclassError
from testing_utils import ModelContractMixin, assert_error

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.models.note_performer.blocks_note_performer import interpolated
from melreformer_hf.models.note_performer.configuration_note_performer import NotePerformerConfig
from melreformer_hf.models.note_performer.modeling_note_performer import NotePerformerModel
from melreformer_hf.nn.sounding import SoundingNotes

HOP = 256 / 22050


def build(**overrides) -> NotePerformerModel:
    torch.manual_seed(0)
    return NotePerformerModel(NotePerformerConfig.preset("test", **overrides)).eval()


def plain(**overrides) -> NotePerformerModel:
    """Without room and correction: what comes out is the sum of the notes."""
    model = build(**overrides)
    with torch.no_grad():
        model.room.level.fill_(-80.0)
        model.correction.head.weight.zero_()
    return model


def columns(*notes) -> dict[str, torch.Tensor]:
    """(onset, release, pitch, velocity) each, as a batch of one."""
    onset, release, pitch, velocity = zip(*notes, strict=True)
    times = {"onset": torch.tensor([onset]), "release": torch.tensor([release])}
    return {**times, "pitch": torch.tensor([pitch]), "velocity": torch.tensor([velocity])}


def played(model, *notes, num_frames=40, first_frame=0) -> torch.Tensor:
    """(mel, frame)."""
    with torch.no_grad():
        return model(**columns(*notes), num_frames=num_frames, first_frame=first_frame).log_mel[0]


def energies(model, *notes, **kwargs) -> torch.Tensor:
    return (2 * played(model, *notes, **kwargs)).exp()


def piece(count: int = 40, seconds: float = 6.0) -> SoundingNotes:
    random = np.random.default_rng(0)
    onset = np.sort(random.uniform(0, seconds, count))
    release = onset + random.uniform(0.05, 1.5, count)
    return SoundingNotes(onset, release, random.integers(44, 76, count), random.integers(20, 120, count))


class TestNotePerformerContract(ModelContractMixin):
    model_class = NotePerformerModel
    main_output = "log_mel"

    def config(self):
        return NotePerformerConfig.preset("test")

    def inputs(self, batch):
        random = torch.Generator().manual_seed(0)
        onset = torch.rand(3, 6, generator=random)
        onset[:, 0] = -2.5  # begun before the crop, and older than the table
        pitch = torch.arange(48, 72).repeat(3, 1)
        pitch[:, :6] = torch.tensor([48, 60, 71, 48, 55, 30])
        velocity = torch.tensor([[90, 5, 120, 60, 30, 64]]).repeat(3, 1)
        velocity[1, 4:] = 0
        release = onset + 0.2
        release[:, 0] = math.inf
        given = {"onset": onset, "release": release, "pitch": pitch[:, :6], "velocity": velocity}
        return {**{name: value[:batch].clone() for name, value in given.items()}, "num_frames": 90}

    def loss(self, output):
        # Every key has to be heard for its damping and its fading to be learned.
        model, total = self._trained, output.log_mel.square().mean()
        keys = torch.arange(48, 72)[None]
        for begin, release in ((0.0, 0.1), (-3.0, math.inf)):
            onset = torch.full((1, 24), begin)
            times = torch.full((1, 24), release)
            velocity = torch.linspace(1, 127, 24).long()[None]
            for key in keys.split(4, dim=1):
                place = slice(int(key[0, 0]) - 48, int(key[0, -1]) - 47)
                mel = model(onset[:, place], times[:, place], key, velocity[:, place], num_frames=30).log_mel
                total = total + mel.square().mean()
        return total

    def model(self):
        self._trained = super().model()
        return self._trained


def test_about_one_and_a_half_million_parameters():
    with torch.device("meta"):
        count = NotePerformerModel(NotePerformerConfig.preset("tiny")).num_parameters()
    assert 1.2e6 < count < 2.0e6


def test_energies_of_notes_add_and_nothing_else_does():
    model = plain()
    low, high = (0.05, 0.3, 52, 80), (0.12, math.inf, 67, 100)
    silence = energies(model, (0.0, 0.0, 60, 0))
    both = energies(model, low, high) - silence
    apart = energies(model, low) + energies(model, high) - 2 * silence
    torch.testing.assert_close(both, apart, rtol=1e-4, atol=1e-9)
    twice = energies(model, low, low) - silence
    torch.testing.assert_close(twice, 2 * (energies(model, low) - silence), rtol=1e-4, atol=1e-9)


def test_silence_is_the_floor_of_the_contract():
    model = plain()
    assert torch.equal(played(model, (0.0, 1.0, 60, 0)), torch.full((128, 40), math.log(1e-5)))


@pytest.mark.parametrize("preset, unit, offset", (("melreformer", 2.0, 0.0), ("melgan", 1 / math.log(10), 0.0)))
def test_values_are_those_of_the_contract(preset, unit, offset):
    """A note of the same magnitudes under contracts of powers and other logarithms."""
    model, plainly = (plain(mel=MelConfig.preset(name, num_mel_bins=80).to_dict()) for name in (preset, "melgan"))
    level = 0.7
    for one in (model, plainly):
        with torch.no_grad():
            one.sounds.level.fill_(level)
    note = (0.0, math.inf, 60, 80)
    loudness = interpolated(model.sounds.loudness.detach(), torch.tensor(80 * 4 / 128)).item()
    value = played(model, note)[:, 10]
    torch.testing.assert_close(value, torch.full((80,), (level + loudness) * unit + offset), rtol=1e-4, atol=1e-4)


def test_a_table_entry_is_heard_at_its_key_and_age():
    """The middle of frame t is (t + 1/2) hops after zero: a note that begins there has age 0 in it."""
    model = plain()
    ages = model.sounds.ages()
    assert ages[0].item() == pytest.approx(-0.03) and ages[-1].item() == pytest.approx(2.0, rel=1e-5)
    with torch.no_grad():
        model.sounds.level.fill_(-20.0)
        model.sounds.level[12 * 24 + 7] = 1.0  # key 60, the eighth moment
        model.sounds.level[12 * 24 + 8] = 2.0
        model.sounds.loudness.zero_()
    silence = math.exp(2 * model.floor_level)
    onset = (20 + 0.5) * HOP - ages[7].item()
    heard = energies(model, (onset, math.inf, 60, 90))[:, 20] - silence
    torch.testing.assert_close(heard, torch.full((128,), math.exp(2.0)), rtol=1e-3, atol=0)
    # Between two moments energies are interpolated on the scale of the steps.
    scale = model.config.age_scale_in_s
    middle = scale * ((ages[7:9] / scale).asinh().mean()).sinh().item()
    heard = energies(model, ((20 + 0.5) * HOP - middle, math.inf, 60, 90))[:, 20] - silence
    torch.testing.assert_close(heard, torch.full((128,), (math.exp(2.0) + math.exp(4.0)) / 2), rtol=1e-3, atol=0)
    assert energies(model, (onset, math.inf, 61, 90)).max() < 1e-8
    octave = energies(model, (onset, math.inf, 36, 90), num_frames=21)[:, 20] - silence
    torch.testing.assert_close(octave.sum(), torch.tensor(0.0), atol=1e-6, rtol=0)  # 36 is key 48, not 60


def test_notes_beyond_the_keyboard_move_by_octaves():
    model = plain()
    for beyond, within in ((36, 48), (47, 59), (72, 60), (83, 71), (90, 66), (1, 49)):
        assert torch.equal(played(model, (0.0, math.inf, beyond, 90)), played(model, (0.0, math.inf, within, 90))), (
            beyond
        )


def test_loudness_is_that_of_the_velocity():
    model = plain()
    with torch.no_grad():
        model.sounds.loudness.copy_(torch.tensor([-3.0, -1.0, 0.0, 0.5, 1.0]))
    loud, soft, between = (played(model, (0.0, math.inf, 60, velocity))[30, 5].item() for velocity in (96, 32, 80))
    assert loud - soft == pytest.approx(1.5, abs=1e-3) and loud - between == pytest.approx(0.25, abs=1e-3)


def test_dampers_fall_and_strings_fade_at_their_rates():
    model = plain(release_tail_in_s=0.4)
    with torch.no_grad():
        model.sounds.level.fill_(3.0)
        model.sounds.damping.fill_(math.log(10.0))
        model.sounds.damping_by_velocity.copy_(torch.tensor([0.0, 0.0, 0.0, math.log(2.0), math.log(2.0)]))
        model.sounds.fading.fill_(math.log(0.5))
    mel = played(model, (0.0, 0.5, 60, 96), num_frames=100)[3]
    assert mel[:40].std() < 1e-4
    after = torch.arange(50, 74)
    times = (after + 0.5) * HOP
    torch.testing.assert_close(mel[after], mel[10] - 20.0 * (times - 0.5), rtol=0, atol=2e-3)
    gone = (torch.arange(100) + 0.5) * HOP > 0.5 + 0.4
    assert torch.allclose(mel[gone], torch.tensor(math.log(1e-5))) and (mel[~gone] > -11).all()
    slow = played(model, (0.0, 0.5, 60, 32), num_frames=100)[3]
    assert (slow[55] - slow[65]).item() == pytest.approx(10.0 * 10 * HOP, abs=1e-3)
    old = played(model, (-3.0, math.inf, 60, 96), num_frames=100)[3]
    torch.testing.assert_close(old, mel[0] - 0.5 * (3.0 - 2.0 + (torch.arange(100) + 0.5) * HOP), rtol=0, atol=2e-3)


def test_a_release_is_as_soft_as_the_window_is_long():
    sounds, half = plain().sounds, 512 / 22050
    since = torch.tensor([-math.inf, -1.0, -half, 0.0, half, 1.0])
    expected = torch.tensor([0.0, 0.0, 0.0, half / 4, half, 1.0])
    torch.testing.assert_close(sounds._softened(since), expected)


def test_the_room_gives_back_past_frames():
    model = plain()
    energy = torch.zeros(1, 128, 20)
    energy[0, 5, 8] = 2.0
    with torch.no_grad():
        model.room.level.copy_((0.1 * torch.arange(1, 7)).log().expand(128, 6))
        heard = model.room(energy)[0]
    assert heard.shape == (128, 14)
    torch.testing.assert_close(heard[5, 2:9], torch.tensor([2.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2]))
    assert heard[5, :2].abs().max() == 0 and heard[5, 9:].abs().max() == 0 and heard[6].abs().max() == 0


def test_of_too_many_notes_the_loudest_sound():
    model = plain(num_voices=2)
    loud, louder, soft = (0.0, math.inf, 60, 80), (0.0, math.inf, 64, 90), (0.0, math.inf, 67, 20)
    expected = played(model, loud, louder)
    torch.testing.assert_close(played(model, soft, loud, louder), expected, rtol=0, atol=1e-5)
    three = plain(num_voices=3)
    assert (played(three, soft, loud, louder) - expected).abs().max() > 1e-3


def test_frames_do_not_depend_on_where_the_stretch_begins():
    model = build()
    notes = ((0.1, 0.4, 50, 60), (0.3, math.inf, 61, 99))
    whole = played(model, *notes, num_frames=60)
    part = played(model, *notes, num_frames=25, first_frame=30)
    torch.testing.assert_close(part, whole[:, 30:55], rtol=0, atol=1e-5)


def test_a_frame_knows_nothing_beyond_the_look_ahead():
    model = build()
    base = (0.0, math.inf, 50, 60)
    known = 40  # nothing of what begins at or after frame 40 may reach frames before 40 - lookahead
    changed = [(known * HOP, math.inf, 60, 127), (0.1, known * HOP, 66, 100)]
    expected = played(model, base, (0.1, math.inf, 66, 100), num_frames=60)
    differs = (played(model, base, *changed, num_frames=60) - expected).abs().amax(0) > 1e-6
    first = int(differs.nonzero()[0])
    assert known - model.lookahead_frames <= first <= known - model.lookahead_frames + 1


@pytest.mark.parametrize("size", (1, 7, 64, 1000))
def test_streams_equal_the_whole_however_they_are_cut(size):
    model, notes, frames = build(), piece(), 560
    whole = model.perform(notes, frames)
    assert whole.shape == (1, 128, frames)
    steps = sorted({*range(0, frames, size), frames}) if size > 1 else [0, 1, 2, 3, 400, 400, 401, 560]

    def snapshots():
        before = 0.0
        for until in steps:
            now = until * HOP
            known = notes.where((notes.onset < now) & (notes.release >= before))
            # What lies ahead is told wrongly: it must not be looked at.
            later = SoundingNotes(np.array([now + 0.01]), np.array([now + 1]), np.array([60]), np.array([127]))
            release = np.where(known.release < now, known.release, np.inf)
            yield SoundingNotes(known.onset, release, known.pitch, known.velocity).joined(later), until
            before = now

    pieces = list(model.stream(snapshots()))
    joined = torch.cat(pieces, dim=-1)
    end = frames - model.lookahead_frames  # the last releases are not known to the stream
    torch.testing.assert_close(joined[..., :end], whole[..., :end], rtol=0, atol=1e-4)
    assert joined.shape == whole.shape


def test_a_stream_gives_what_is_settled_at_once_and_the_rest_at_the_end():
    model, notes = build(), piece(10, 1.0)
    sizes = [made.shape[-1] for made in model.stream([(notes, 50), (notes, 50), (notes, 80)])]
    ahead = model.lookahead_frames
    assert sizes == [50 - ahead, 30, ahead]
    assert list(model.stream([])) == []


def test_a_wrapper_is_called_in_place_of_the_model():
    model, notes, calls = build(), piece(10, 1.0), []

    def wrapper(**inputs):
        calls.append(inputs["num_frames"])
        assert inputs["onset"].shape[1] == 16  # filled up, so that compiled models meet few shapes
        return model(**inputs)

    made = torch.cat(list(model.stream([(notes, 90)], module=wrapper)), dim=-1)
    torch.testing.assert_close(made, model.perform(notes, 90), rtol=0, atol=1e-5)
    assert sum(calls) == 90


def test_the_table_is_made_once_per_stream_and_is_the_same(monkeypatch):
    model, notes = build(), piece(10, 1.0)
    given = columns((0.1, 0.4, 50, 60))
    with torch.no_grad():
        expected = model(**given, num_frames=20).log_mel
        made = model(**given, num_frames=20, spectra=model.sounds.energies()).log_mel
    assert torch.equal(made, expected)
    whole, calls, energies_of = model.perform(notes, 90), [], model.sounds.energies
    monkeypatch.setattr(model.sounds, "energies", lambda: calls.append(1) or energies_of())
    streamed = torch.cat(list(model.stream((notes, until) for until in range(10, 91, 10))), dim=-1)
    torch.testing.assert_close(streamed[..., :60], whole[..., :60], rtol=0, atol=1e-5)
    assert len(calls) == 1


def test_hours_later_a_note_sounds_the_same():
    model, notes = build(), piece(6, 0.5)
    late = 500_000  # frames, an hour and a half
    moved = SoundingNotes(notes.onset + late * HOP, notes.release + late * HOP, notes.pitch, notes.velocity)
    made = list(model._pieces(model, moved, late, late + 60))
    torch.testing.assert_close(made[0], model.perform(notes, 60), rtol=0, atol=1e-5)


def test_no_notes_are_silence():
    model = plain()
    assert torch.equal(model.perform(SoundingNotes.none(), 700), torch.full((1, 128, 700), math.log(1e-5)))


def test_mistakes_are_named():
    model, given = build(), columns((0.0, 1.0, 60, 64))
    with pytest.raises(ValueError) as error:
        model(**{**given, "pitch": given["pitch"][0]}, num_frames=3)
    assert_error(error, "pitch", "(1,)", "(batch, note)")
    with pytest.raises(ValueError) as error:
        model(**given, num_frames=0)
    assert_error(error, "num_frames", "at least 1", "0")
    with pytest.raises(ValueError) as error:
        list(model.stream([(piece(3), 20), (piece(3), 10)]))
    assert_error(error, "until", "10", "20")
    good = ([0.5], [1.0], [60], [64])
    for column, value in ((0, -1.0), (0, math.nan), (1, 0.2), (1, math.nan), (2, 128), (2, -1), (3, 0), (3, 128)):
        bad = [list(values) for values in good]
        bad[column][0] = value
        with pytest.raises(ValueError) as error:
            model.perform(SoundingNotes(*map(np.array, bad)), 5)
        name = ("onset", "release", "pitch", "velocity")[column]
        assert_error(error, f"notes.{name}[0]" if not (column == 0 and value == 2) else "notes", str(value))


@pytest.mark.parametrize(
    "field, value",
    (
        ("hidden_size", 0),
        ("num_ages", 1),
        ("num_keys", 11),
        ("lowest_key", 110),
        ("first_age_in_s", 0.0),
        ("release_tail_in_s", 0.04),
        ("age_scale_in_s", 0.0),
        ("kernel_size", 4),
        ("num_voices", 0),
        ("room_frames", 0),
    ),
)
def test_configurations_that_cannot_be_are_refused(field, value):
    with pytest.raises(StrictDataclassError, match=field):
        NotePerformerConfig.preset("test", **{field: value})


def test_borders_of_the_configuration():
    inside, outside = from_one("hidden_size", "intermediate_size", "num_hidden_layers", "num_voices", "room_frames")
    inside |= {
        "num_ages": (2,),
        "num_velocities": (2,),
        "num_keys": (12, {"num_keys": 128, "lowest_key": 0}, {"num_keys": 100, "lowest_key": 28}),
        "first_age_in_s": (-1e-3,),
        "last_age_in_s": (1e-3,),
        "release_tail_in_s": (0.047,),  # longer than a window of 1024 samples
        "age_scale_in_s": (1e-3,),
        "kernel_size": (1,),
    }
    outside |= {
        "num_ages": (1,),
        "num_velocities": (1,),
        "num_keys": (11, {"num_keys": 101, "lowest_key": 28}),
        "lowest_key": (-1,),
        "first_age_in_s": (0.0,),
        "last_age_in_s": (0.0,),
        "release_tail_in_s": (1024 / 22050,),
        "age_scale_in_s": (0.0,),
        "kernel_size": (0, 2, -1),
    }
    check_borders(partial(NotePerformerConfig.preset, "test"), inside, outside)
