"""Notes in the demo: what is composed, continued, filled, accompanied, performed and heard, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from audio_files import RATE
from midi_pipeline_for_tests import piece, tiny_midi_pipeline

from melreformer_hf import MidiGenerationPipeline
from melreformer_hf.pipelines.composing import Score
from melreformer_hf.pipelines.hearing import score_end
from melreformer_hf.processing.midi.notes import MidiNote, write_midi
from melreformer_hf.processing.midi.scores import piece_to_midi

MELODY = Path(__file__).parents[2] / "spaces" / "melreformer" / "melody.mid"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def pipe():
    return tiny_midi_pipeline()


@pytest.fixture(scope="module")
def client(app, connected, pipe):
    return connected(app.build_demo(pipe, None))


@pytest.fixture(scope="module")
def players(app, pipe):
    from melreformer_space.players import Players

    return Players(pipe, None, live=True)


@pytest.fixture
def sketch(tmp_path) -> str:
    write_midi(piece_to_midi(*piece()), tmp_path / "sketch.mid")
    return str(tmp_path / "sketch.mid")


def handed(path: str | Path) -> dict:
    from gradio_client import handle_file

    return handle_file(str(path))


def rows(notes) -> list[list[float]]:
    return [[note.onset / 100, note.duration / 100, note.pitch, note.velocity] for note in notes]


def check_roll(roll: dict, score: Score, given: int) -> None:
    """It shows the file's notes, and tells which of them were given."""
    # Files sort notes of one onset in their own way.
    assert sorted(note[:4] for note in roll["notes"]) == sorted(rows(score.notes))
    assert sum(note[4] for note in roll["notes"]) == given
    assert roll["made"] == roll["seconds"]


def test_generate_composes_by_default_and_gives_sound_notes_and_roll(client, pipe):
    _, wav, midi, roll, idea, mel, status, seed = client.predict(2, 7, False, api_name="/generate")
    expected = pipe(2, generator=torch.Generator().manual_seed(7))
    score = Score.read(midi)
    assert sorted(score.notes) == sorted(expected.notes[0]) and idea is mel is None and seed == 7
    check_roll(roll, score, 0)
    assert roll["seconds"] == 2 and roll["gap"] == []
    assert roll["pedal"] == [[down / 100, up / 100] for down, up in score.pedal]
    data, rate = soundfile.read(wav)
    sound = expected.audios[0, 0].numpy()
    assert rate == RATE and np.abs(data).max() == pytest.approx(10 ** (-1 / 20), abs=1e-3)
    np.testing.assert_allclose(data, sound * np.abs(data).max() / np.abs(sound).max(), atol=1e-3)
    assert "2.0 s of music" in status and "Seed 7." in status
    hotter = client.predict(2, 7, False, "notes", 1.5, api_name="/generate")[3]
    assert hotter["notes"] != roll["notes"]


def test_sound_and_roll_grow_while_a_piece_is_written(players):
    from melreformer_space.roll import roll_of

    steps = list(players.generate(4, 3, False, "notes", 1.0, 0.98, 4))
    assert steps[0][3] == {"seconds": 4.0, "made": 0.0, "notes": [], "pedal": [], "gap": []}
    assert steps[0][0]["value"] is None and steps[0][0]["autoplay"] is True and steps[0][0]["playback_position"] == 0
    live = np.concatenate([step[0][1] for step in steps if isinstance(step[0], tuple)])
    whole, _ = soundfile.read(steps[-1][1])
    assert abs(len(whole) / RATE - 4) < 0.02 and 0 < np.abs(live).max() < 32767
    np.testing.assert_allclose(live / np.abs(live).max(), whole / np.abs(whole).max(), atol=2e-2)
    rolls = [step[3] for step in steps if "notes" in (step[3] or {})]
    counts, made = [len(roll["notes"]) for roll in rolls], [roll["made"] for roll in rolls]
    assert roll_of(Score([]), 4.0, 4.005)["made"] == 4.0  # though the sound ends with a whole frame
    assert counts == sorted(counts) and made == sorted(made) and made[-1] == 4.0 and 0 < made[1] < 4
    for roll in rolls[1:-1]:  # what sounds is seen
        assert len(roll["notes"]) >= sum(note[0] < roll["made"] for note in rolls[-1]["notes"])


def test_a_continued_file_begins_with_its_notes(client, sketch):
    given = Score.read(sketch)
    _, wav, midi, roll, status, seed = client.predict(handed(sketch), 3, 5, False, api_name="/continue")
    made = Score.read(midi)
    last = max(note.onset for note in given.notes)
    assert set(given.notes) <= set(made.notes) and len(made.notes) > len(given.notes)
    assert all(note.onset >= last for note in set(made.notes) - set(given.notes))
    check_roll(roll, made, len(given.notes))
    end = max(note.onset + note.duration for note in given.notes) / 100
    assert abs(soundfile.info(wav).duration - (end + 3)) < 0.05 and roll["seconds"] == pytest.approx(end + 3)
    assert "sketch.mid and 3 s more" in status and seed == 5


def test_a_gap_is_filled_and_both_sides_stay(client, sketch):
    given = Score.read(sketch)
    _, _, midi, roll, status, _ = client.predict(handed(sketch), 0.5, 1.5, 5, False, api_name="/fill")
    made = Score.read(midi)
    outside = {note for note in given.notes if not 50 <= note.onset < 150}
    new = set(made.notes) - outside
    assert outside <= set(made.notes) and new and all(50 <= note.onset < 150 for note in new)
    check_roll(roll, made, len(outside))
    assert roll["gap"] == [0.5, 1.5] and "0.5 to 1.5 s written anew" in status


def test_a_melody_is_accompanied_and_stays(client, sketch):
    given = Score.read(sketch)
    _, _, midi, roll, status, _ = client.predict(handed(sketch), 5, False, api_name="/accompany")
    made = Score.read(midi)
    assert set(given.notes) < set(made.notes)
    check_roll(roll, made, len(given.notes))
    other = client.predict(handed(sketch), 6, False, api_name="/accompany")[3]
    assert other["notes"] != roll["notes"] and "accompaniment" in status


def test_a_file_is_performed_as_it_is(client, pipe, sketch):
    given = Score.read(sketch)
    _, wav, midi, roll, status = client.predict(handed(sketch), api_name="/perform")
    assert sorted(Score.read(midi).notes) == sorted(given.notes)
    check_roll(roll, given, len(given.notes))
    assert abs(soundfile.info(wav).duration - score_end(*given)) < 0.05 and "performed" in status


def test_a_recording_is_written_down(app, connected, tmp_path):
    pipe = MidiGenerationPipeline.from_pretrained("piano-tiny")
    client = connected(app.build_demo(pipe, None))
    melody = Score.read(MELODY)
    pipe.perform([melody], 6.0, synth="sampled").save(tmp_path / "played.wav")
    _, wav, midi, roll, status = client.predict(handed(tmp_path / "played.wav"), api_name="/transcribe")
    heard = Score.read(midi)
    played = [(note.onset, note.pitch) for note in melody.notes if note.onset < 580]
    found = [
        any(abs(note.onset - onset) <= 5 and note.pitch == pitch for note in heard.notes) for onset, pitch in played
    ]
    assert sum(found) >= 0.8 * len(played) and len(heard.notes) < 2 * len(played)
    check_roll(roll, heard, 0)
    assert f"{len(heard.notes)} notes were heard in 6.0 s of played.wav" in status
    assert np.abs(soundfile.read(wav)[0]).max() > 0.5  # and played again
    soundfile.write(tmp_path / "still.wav", np.zeros(2 * RATE, dtype=np.float32), RATE)
    with pytest.raises(Exception, match="No notes were heard in still.wav"):
        client.predict(handed(tmp_path / "still.wav"), api_name="/transcribe")


def test_stop_ends_writing_and_playing(players, sketch):
    from melreformer_space.stops import Stopped

    steps = players.accompany(sketch, 5, False, 1.0, 0.98)
    assert next(steps)[4] == "Writing notes ..."
    players.stops.stop(None, "accompany")
    (last,) = list(steps)
    assert last[4] == "Stopped." and last[1] is last[2] is None and len(last[3]["notes"]) == len(piece().notes)
    assert issubclass(Stopped, Exception)
    for step in players.go_on(sketch, 60, 5, False, 1.0, 0.98):
        if " s are made" in str(step[4]):
            players.stops.stop(None, "continue")
    assert "Stopped after" in step[4] and 0 < step[3]["made"] < step[3]["seconds"]
    assert set(piece().notes) <= set(Score.read(step[2]).notes)
    assert soundfile.info(step[1]).duration == pytest.approx(step[3]["made"], abs=0.01)


def test_an_uploaded_file_is_shown_before_anything_is_done_with_it(players, sketch):
    roll, status, begin, end = players.notes.preview(sketch)
    assert len(roll["notes"]) == len(piece().notes) and all(note[4] == 1 for note in roll["notes"])
    assert "21 notes" in status and 0 < begin < end < 2.1
    assert players.notes.preview(None) == (None, "", 0.0, 1.0)


def hostile_files(folder: Path) -> list[tuple[Path, str]]:
    """Files that nobody should send, and what is said to it."""
    header = b"MThd\x00\x00\x00\x06\x00\x00\x00\x01\x00\x60"
    contents = {
        "empty.mid": (b"", "empty.mid is not a readable MIDI file"),
        "text.mid": (b"no notes at all, only words", "text.mid is not a readable MIDI file"),
        "cut.mid": (header + b"MTrk\x00\xff\xff\xff", "cut.mid.* is not a readable MIDI file"),
        "large.mid": (bytes(1_100_000), "large.mid has 1.1 MB; at most 1 MB"),
        "silent.mid": (header + b"MTrk\x00\x00\x00\x04\x00\xff\x2f\x00", "silent.mid holds no notes"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    scores = {
        "drums.mid": ([MidiNote(0, 20, 40, 128, 80)], "drums.mid holds only drums"),
        "long.mid": (
            [MidiNote(0, 20, 60, 0, 80), MidiNote(40_000, 20, 60, 0, 80)],
            "long.mid lasts 401 s; at most 300 s",
        ),
        "many.mid": (
            [MidiNote(tick, 1, pitch, 0, 64) for tick in range(200) for pitch in range(101)],
            "many.mid has 20200 notes; at most 20000",
        ),
        "band.mid": (
            [MidiNote(10 * program, 5, 60, program, 64) for program in range(15)],
            "band.mid has more than 14 instruments",
        ),
    }
    for name, (notes, _) in scores.items():
        write_midi(piece_to_midi(notes), folder / name)
    return [(folder / name, words) for name, (_, words) in {**contents, **scores}.items()]


def test_hostile_and_empty_uploads_are_refused_in_words(client, tmp_path):
    from gradio_client.exceptions import AppError

    for path, words in hostile_files(tmp_path):
        with pytest.raises(AppError, match=words) as error:
            client.predict(handed(path), api_name="/perform")
        assert "/tmp" not in str(error.value)
    (tmp_path / "piece.exe").write_bytes(MELODY.read_bytes())
    with pytest.raises(AppError, match="Invalid file type"):
        client.predict(handed(tmp_path / "piece.exe"), api_name="/perform")


def test_bad_values_are_refused_in_words(client, sketch):
    from gradio_client.exceptions import AppError

    file = handed(sketch)
    for task, values, words in (
        ("continue", (None, 3), "Upload a MIDI file first"),
        ("continue", (file, 61), "seconds to add must be a number from 1 to 60, got 61"),
        ("continue", (file, "long"), "seconds to add must be a number from 1 to 60, got 'long'"),
        ("continue", (file, 3, 1.5, False), "seed must be a whole number"),
        ("continue", (file, 3, 1, None), "true or false, got None"),
        ("continue", (file, 3, 1, False, 0), "temperature must be a number from 0.5 to 1.5, got 0"),
        ("accompany", (file, 1, False, 1, 2), "share of likely notes must be a number from 0.5 to 1, got 2"),
        ("fill", (file, 1.5, 0.5), "gap must end after its beginning, got 1.5 to 0.5 s"),
        ("fill", (file, None, 0.5), "beginning of the gap in seconds must be a number"),
        ("fill", (file, 0.5, 1000), "end of the gap in seconds must be a number from 0 to 300, got 1000"),
        ("fill", (file, 0, 300), "before or after the gap"),
        ("perform", (None,), "Upload a MIDI file first"),
    ):
        with pytest.raises(AppError, match=words):
            client.predict(*values, api_name=f"/{task}")
