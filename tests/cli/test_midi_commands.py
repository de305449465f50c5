"""What `melreformer midi` and `generate` do with notes: files by suffix, seeds, given notes that stay, words for mistakes."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import soundfile
import torch
from audio_files import RATE
from midi_pipeline_for_tests import piece, tiny_midi_pipeline
from pipeline_utils_for_tests import MEL, tiny_pipeline
from typer.testing import CliRunner

from melreformer_hf.cli import midi
from melreformer_hf.cli.main import app, main
from melreformer_hf.models.note_ear.configuration_note_ear import NoteEarConfig
from melreformer_hf.models.note_ear.modeling_note_ear import NoteEarModel
from melreformer_hf.pipelines.loading import index_of, parts_of
from melreformer_hf.pipelines.pipeline_midi_generation import MidiGenerationPipeline
from melreformer_hf.processing.midi.notes import DRUMS, MidiNote, read_notes, write_midi
from melreformer_hf.processing.midi.pedal import read_pedal
from melreformer_hf.processing.midi.scores import piece_to_midi
from melreformer_hf.processing.tokenization_midi import MidiTokenizer

COMMANDS = ("compose", "continue", "fill", "accompany", "perform", "transcribe", "tokenize")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Both pipelines in one folder."""
    folder = tmp_path_factory.mktemp("both")
    tiny_midi_pipeline().save_pretrained(folder)
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def sketch(tmp_path):
    write_midi(piece_to_midi(*piece()), tmp_path / "sketch.mid")
    return str(tmp_path / "sketch.mid")


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def mistake(monkeypatch, capsys, *words: object) -> str:
    monkeypatch.setattr(sys, "argv", ["melreformer", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and not any("Traceback" in line for line in lines)
    return lines[-1]


def test_composing_writes_sound_notes_and_a_picture_and_a_seed_gives_the_same(checkpoint, tmp_path):
    words = ("midi", "compose", "--checkpoint", checkpoint, "--seconds", 2, "--seed", 5)
    text = run(*words, "-o", tmp_path / "a.flac")
    assert "seed 5" in text and "than real time" in text and str(tmp_path / "a.mid") in text
    pipe = MidiGenerationPipeline.from_pretrained(checkpoint)
    called = pipe(2.0, generator=torch.Generator().manual_seed(5))
    data, rate = soundfile.read(tmp_path / "a.flac")
    assert rate == RATE and data.size == called.num_samples[0]
    called.save(tmp_path / "called.flac")
    np.testing.assert_allclose(soundfile.read(tmp_path / "called.flac")[0], data, atol=1e-3)
    assert sorted(read_notes(tmp_path / "a.mid")) == sorted(called.notes[0])
    assert read_pedal(tmp_path / "a.mid") == called.pedal[0]
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    text = run(*words, "-o", tmp_path / "new" / "b.mid", "--num", 2)
    assert "seed 6" in text and not list((tmp_path / "new").glob("*.flac"))
    assert (tmp_path / "new" / "b-0.mid").read_bytes() == (tmp_path / "a.mid").read_bytes()
    assert read_notes(tmp_path / "new" / "b-1.mid") != read_notes(tmp_path / "new" / "b-0.mid")
    assert (tmp_path / "new" / "b-1.png").is_file()
    run(*words, "-o", tmp_path / "c.mid", "--temperature", 0.2, "--top-p", 0.5)
    assert read_notes(tmp_path / "c.mid") != read_notes(tmp_path / "a.mid")


def test_an_interrupted_piece_keeps_its_sound_and_its_notes(checkpoint, tmp_path, monkeypatch):
    stream = MidiGenerationPipeline.stream

    def interrupted(self, *arguments, **more):
        for index, chunk in enumerate(stream(self, *arguments, **more)):
            if index == 2:
                raise KeyboardInterrupt
            yield chunk

    monkeypatch.setattr(MidiGenerationPipeline, "stream", interrupted)
    words = ["generate", "--checkpoint", checkpoint, "--seconds", 20, "--seed", 1, "-o", tmp_path / "half.wav"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 130 and "20.0 s that were made are in" in result.output
    assert f"their notes are in {tmp_path / 'half.mid'}" in result.output.replace("\n", "")
    length = soundfile.info(tmp_path / "half.wav").duration
    notes = read_notes(tmp_path / "half.mid")
    # The composer may be a chunk ahead of what was heard.
    assert 0 < length < 20 and notes and notes[0].onset / 100 < length


def test_generating_takes_the_composer_where_there_is_one(checkpoint, tmp_path):
    words = ("generate", "--checkpoint", checkpoint, "--seconds", 1, "--seed", 5)
    run(*words, "-o", tmp_path / "notes.wav")
    run("midi", "compose", *words[1:], "-o", tmp_path / "same.wav")
    assert (tmp_path / "notes.wav").read_bytes() == (tmp_path / "same.wav").read_bytes()
    assert (tmp_path / "notes.mid").is_file()
    run(*words, "--from", "idea", "--steps", 2, "-o", tmp_path / "idea.wav")
    assert not (tmp_path / "idea.mid").exists() and (tmp_path / "idea.png").is_file()
    run(*words, "--steps", 2, "-o", tmp_path / "steps.wav")  # denoising steps are an idea's
    assert (tmp_path / "steps.wav").read_bytes() == (tmp_path / "idea.wav").read_bytes()
    text = run(*words, "--idea-from", "notes", "-o", tmp_path / "composed.wav")  # so is what an idea is drawn from
    assert "seed 5" in text and not (tmp_path / "composed.mid").exists()
    run(*words, "--from", "idea", "-o", tmp_path / "default.wav")
    assert (tmp_path / "composed.wav").read_bytes() == (tmp_path / "default.wav").read_bytes()
    assert (tmp_path / "composed.wav").read_bytes() != (tmp_path / "idea.wav").read_bytes()
    run(*words, "--idea-from", "noise", "--steps", 2, "-o", tmp_path / "noise.wav")
    assert (tmp_path / "noise.wav").read_bytes() == (tmp_path / "idea.wav").read_bytes()
    assert {"composer", "performer", "idea", "vocoder"} <= parts_of(checkpoint) and "ear" not in parts_of(checkpoint)
    assert index_of(checkpoint)["_class_name"] == "MelReformerPipeline"


def test_continued_filled_and_accompanied_files_keep_what_was_given(checkpoint, sketch, tmp_path):
    common = ("--checkpoint", checkpoint, "--seed", 3)
    given = set(piece().notes)
    text = run("midi", "continue", sketch, "--seconds", 6, *common, "-o", tmp_path / "whole.mid")
    assert "seed 3" in text and "notes" in text
    notes = read_notes(tmp_path / "whole.mid")
    new = [note for note in notes if note not in given]
    assert given <= set(notes) and new and min(note.onset for note in new) >= 210
    run("midi", "fill", sketch, "--start", 0.4, "--end", 1.5, *common, "-o", tmp_path / "filled.mid")
    notes = read_notes(tmp_path / "filled.mid")
    kept = {note for note in given if not 40 <= note.onset < 150}
    assert kept <= set(notes) and all(40 <= note.onset < 150 for note in notes if note not in kept)
    run("midi", "accompany", sketch, *common, "-o", tmp_path / "song.wav", "--synth", "sampled", "--num", 2)
    for index in range(2):
        assert given <= set(read_notes(tmp_path / f"song-{index}.mid"))
        assert soundfile.info(tmp_path / f"song-{index}.wav").duration == pytest.approx(2.7 + 1.0, abs=1.0)


def test_performing_plays_the_file_with_either_synthesizer(checkpoint, sketch, tmp_path):
    pipe = MidiGenerationPipeline.from_pretrained(checkpoint)
    for synth in ("performer", "sampled"):
        words = ("midi", "perform", sketch, "--checkpoint", checkpoint, "--synth", synth, "--keep-level")
        run(*words, "-o", tmp_path / f"{synth}.wav")
        expected = pipe(midi=sketch, synth=synth).audios[0, 0].numpy()
        data = soundfile.read(tmp_path / f"{synth}.wav")[0]
        np.testing.assert_allclose(data, expected / max(1.0, np.abs(expected).max()), atol=2e-3)
    run(*words[:-1], "--seconds", 1, "-o", tmp_path / "short.wav")
    data = soundfile.read(tmp_path / "short.wav")[0]
    assert abs(data.size / RATE - 1.0) < 0.02 and abs(20 * np.log10(np.abs(data).max()) + 1) < 0.01
    assert not list(tmp_path.glob("[!s]*.mid")) and (tmp_path / "performer.png").is_file()


def test_a_pipe_gets_sound_of_whatever_length(checkpoint, sketch, tmp_path, capfdbinary):
    from melreformer_hf.cli.generate import load_pipeline
    from melreformer_hf.cli.pieces import play_file

    pipe = load_pipeline(checkpoint, "cpu", None, to_stderr=True, notes=True)
    capfdbinary.readouterr()
    score = midi._read(tmp_path / "sketch.mid")

    class Standard:
        buffer = io.BytesIO()

        def isatty(self) -> bool:
            return False

    before, sys.stdout = sys.stdout, Standard()
    try:
        play_file(pipe, None, score, "", None, "sampled", None, 0.0)
    finally:
        sys.stdout = before
    data, rate = soundfile.read(io.BytesIO(Standard.buffer.getvalue()))
    assert rate == RATE and data.size == pipe(midi=score).num_samples[0]


def test_a_sketch_is_expanded(checkpoint, sketch, tmp_path):
    run("expand", sketch, "--checkpoint", checkpoint, "--seconds", 2, "-o", tmp_path / "again.wav")
    assert abs(soundfile.info(tmp_path / "again.wav").duration - 2.0) < 0.02 and (tmp_path / "again.png").is_file()


def test_transcribing_writes_what_the_ear_hears(checkpoint, tmp_path, monkeypatch):
    torch.manual_seed(0)
    NoteEarModel(NoteEarConfig.preset("test", mel=MEL)).save_pretrained(tmp_path / "ear")
    heard = [MidiNote(10, 20, 60, 0, 80), MidiNote(30, 20, 64, 0, 70)]
    asked = []

    def transcribe(self, waveform, sampling_rate, module=None):
        asked.append((len(waveform), sampling_rate))
        return heard if waveform.any() else []

    monkeypatch.setattr(NoteEarModel, "transcribe", transcribe)
    soundfile.write(tmp_path / "tone.flac", 0.1 * np.sin(np.arange(44100) * 0.1), 44100)
    text = run(
        "midi", "transcribe", tmp_path / "tone.flac", "--checkpoint", tmp_path / "ear", "-o", tmp_path / "n.mid"
    )
    assert "2 notes in 1.0 s" in text and read_notes(tmp_path / "n.mid") == heard
    assert asked == [(RATE, RATE)] and (tmp_path / "n.png").is_file()
    soundfile.write(tmp_path / "rest.wav", np.zeros(RATE), RATE)
    with pytest.raises(ValueError, match="No notes were heard in .*rest.wav"):
        run("midi", "transcribe", tmp_path / "rest.wav", "--checkpoint", tmp_path / "ear", "-o", tmp_path / "x.mid")
    with pytest.raises(ValueError, match="has no ear"):
        run("midi", "transcribe", tmp_path / "rest.wav", "--checkpoint", checkpoint, "-o", tmp_path / "x.mid")
    whole = MidiGenerationPipeline.from_pretrained(checkpoint, ear=NoteEarModel.from_pretrained(tmp_path / "ear"))
    whole.save_pretrained(tmp_path / "pipe")
    run("midi", "transcribe", tmp_path / "tone.flac", "--checkpoint", tmp_path / "pipe", "-o", tmp_path / "m.mid")
    assert (tmp_path / "m.mid").read_bytes() == (tmp_path / "n.mid").read_bytes() and not (tmp_path / "x.mid").exists()
    assert whole.transcribe(torch.ones(RATE), RATE).notes == heard


def test_tokens_are_those_of_the_tokenizer(sketch, tmp_path):
    for scheme in ("arrival", "interarrival", "note_tuple"):
        tokenizer = MidiTokenizer(scheme=scheme)
        expected = tokenizer.encode_midi(sketch)
        assert [int(word) for word in run("midi", "tokenize", sketch, "--scheme", scheme).split()] == expected
        text = run("midi", "tokenize", sketch, "--scheme", scheme, "-o", tmp_path / "tokens.txt")
        assert f"wrote {len(expected)} tokens of {tokenizer.vocab_size:}" in text
        assert [int(word) for word in (tmp_path / "tokens.txt").read_text().split()] == expected
    names = run("midi", "tokenize", sketch, "--names", "--start", 0.2, "--end", 0.4).split()
    tokenizer = MidiTokenizer(scheme="arrival")
    assert names == tokenizer.convert_ids_to_tokens(tokenizer.encode_midi(sketch, start=0.2, end=0.4))


def test_mistakes_are_one_line(checkpoint, sketch, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_midi(piece_to_midi([]), tmp_path / "empty.mid")
    write_midi(piece_to_midi([MidiNote(0, 5, 40, DRUMS, 90)]), tmp_path / "drums.mid")
    (tmp_path / "text.mid").write_text("no music")
    only_ideas = tmp_path / "ideas"
    tiny_pipeline().save_pretrained(only_ideas)
    at = ("--checkpoint", checkpoint)
    for words, fragment in (
        (("midi", "perform", "empty.mid", *at), "empty.mid holds no notes: there is nothing to play."),
        (("midi", "perform", "drums.mid", *at), "drums.mid holds only drums, which are not played"),
        (("midi", "perform", "text.mid", *at), "text.mid is not a readable MIDI file"),
        (("midi", "perform", "nowhere.mid", *at), "No MIDI file at nowhere.mid"),
        (("midi", "perform", sketch, *at, "-o", "a.mid"), "must end in .wav, .flac, .ogg, .mp3, got 'a.mid'"),
        (
            ("midi", "perform", sketch, *at, "--synth", "organ"),
            "--synth must be one of performer, sampled, got 'organ'",
        ),
        (("midi", "compose", *at, "-o", "a.m4a"), "must end in .mid, .wav, .flac, .ogg, .mp3, got 'a.m4a'"),
        (("midi", "compose", *at, "--seconds", 0.5), "--seconds must be a number from 1"),
        (("midi", "compose", *at, "--temperature", 0), "--temperature"),
        (("midi", "compose", "--checkpoint", only_ideas), "has no composer and no performer"),
        (("midi", "continue", "empty.mid", *at), "empty.mid holds no notes"),
        (("midi", "continue", sketch, "--seconds", 1, *at), "seconds must be a number beyond 2.1 s"),
        (("midi", "fill", sketch, "--start", 2, "--end", 1, *at), "--end must lie after --start, got 2 and 1"),
        (("midi", "fill", sketch, "--start", 2), "--end"),
        (("midi", "tokenize", "nowhere.mid"), "No MIDI file at nowhere.mid"),
        (("midi", "tokenize", sketch, "--scheme", "words"), "scheme must be one of"),
        (("midi", "transcribe", "nowhere.wav"), "No audio file at nowhere.wav"),
        (("midi", "transcribe", "text.mid", "-o", "a.wav"), "--output must end in .mid, got 'a.wav'"),
        (("generate", *at, "--from", "noise"), "--from must be notes or idea, got 'noise'"),
        (("generate", *at, "--from", "notes", "--steps", 3), "--steps is for --from idea"),
        (("generate", "--checkpoint", only_ideas, "--from", "notes"), "has no composer"),
        (("generate", *at, "--idea-from", "nothing"), "--idea-from must be noise or notes, got 'nothing'"),
        (("generate", *at, "--idea-from", "notes", "--steps", 3), "--steps is for --idea-from noise"),
        (("generate", *at, "--idea-from", "notes", "--midi", sketch), "--idea-from and --midi both say"),
        (("generate", *at, "--from", "notes", "--idea-from", "notes"), "--idea-from is for --from idea"),
        (("generate", "--checkpoint", only_ideas, "--idea-from", "notes"), "the checkpoint has no composer"),
    ):
        assert fragment in mistake(monkeypatch, capsys, *words), words
    assert not list(tmp_path.glob("*.wav")) and not list(tmp_path.glob(".*partial*"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_teaches_with_an_example(command):
    result = CliRunner().invoke(app, ["midi", command, "--help"], terminal_width=200)
    assert result.exit_code == 0 and f"Example: melreformer midi {command}" in " ".join(result.output.split())
