"""Mistakes on the command line: one clear line on stderr, exit code 2, no traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import RATE, tone
from pipeline_utils_for_tests import tiny_pipeline
from typer.testing import CliRunner

from melreformer_hf import _errors as errors
from melreformer_hf._registration import CONVERTIBLE
from melreformer_hf.cli import demo, generate
from melreformer_hf.cli.main import app, main
from melreformer_hf.pipelines.pipeline_utils import MAX_SECONDS

COMMANDS = (
    "generate",
    "expand",
    "demo",
    "train",
    "evaluate",
    "convert",
    "assemble",
    "push",
    "doctor",
    "data build",
    "edit vary",
    "edit blend",
    "edit inpaint",
    "edit extend",
    "edit loop",
    "edit stretch",
    "edit sweep",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def mistake(monkeypatch, capsys, tmp_path):
    """Runs the command in an empty folder and gives the line on stderr."""

    def run(*words: object) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["melreformer", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("error: ") and not any("Traceback" in line for line in lines)
        assert len([line for line in lines if line.startswith("error: ")]) == 1
        assert not list(tmp_path.glob("*.wav")) and not list(tmp_path.glob(".*partial*"))
        return lines[-1]

    return run


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ("generate --seconds -3", "--seconds must be a number from 1 to 21600 (6 hours), got -3"),
        ("generate --seconds 0", "--seconds must be a number from 1"),
        ("generate --seconds 0.01", "--seconds must be a number from 1"),
        ("generate --seconds 1e9", "--seconds must be a number from 1 to 21600 (6 hours), got 1e+09"),
        ("generate --seconds inf", "--seconds must be a number from 1"),
        ("generate --seconds nan", "--seconds must be a number from 1"),
        ("generate --seconds long", "--seconds"),
        ("generate --steps 0", "--steps"),
        ("generate --seed -1", "--seed"),
        ("generate --num 0", "--num"),
        ("generate --threads 0", "--threads"),
        ("generate --sead 3", "--seed"),
        ("generate --device quantum", "'quantum'"),
        ("generate --device cuda:99", "finds no such device"),
        ("generate --checkpoint nowhere", "neither a folder, nor a bundled checkpoint"),
        ("generate --checkpoint ./nowhere/at/all", "neither a folder"),
        ("generate --output song.m4a", "must end in .wav, .flac, .ogg, .mp3, got 'song.m4a'"),
        ("generate -o -  --num 2", "--num must be 1 with --output -, got 2"),
        ("genarate", "generate"),
        ("expand", "Missing argument"),
        ("expand nowhere.wav", "nowhere.wav"),
        ("expand nowhere.wav --seconds -1", "--seconds must be a number from 1"),
        ("data build nowhere --output x", "must be a folder of audio files, got nowhere"),
        ("train nothing", "'vocoder'"),
        ("train vocoder --config tinny", "Did you mean 'tiny'?"),
        ("train vocoder --config tiny --max-stepps 3", "Did you mean '--max_steps'?"),
        ("train vocoder --config tiny", "dataset must be given"),
        ("data build . --output x --test-fraction 2", "test_fraction"),
        ("data build . --output x --sampling-rate 0", "sampling_rate"),
        ("data render . --soundfont none.sf2 --output x", "none.sf2|fluidsynth"),
        ("evaluate --checkpoint piano-tiny --dataset nowhere", "nowhere"),
        ("evaluate --checkpoint piano-tiny --dataset nowhere --parts vocoder,drums", "vocoder,drums"),
        ("evaluate --checkpoint piano-tiny --dataset nowhere --output table.txt", ".json file"),
        ("convert --family rnn --checkpoint a --arguments b --output c", "'rnn'"),
        (
            "convert --family hifi_vocoder --checkpoint a --arguments b --output c",
            "No JSON or YAML file of arguments at b",
        ),
        ("assemble --idea a --expansion b --vocoder c --output d --dtype float8", "float8"),
        ("assemble --idea a --expansion b --vocoder c --output d --prediction-type epsilon", "epsilon"),
        ("assemble --idea a --expansion b --vocoder c --output d --card nowhere.json", "nowhere.json"),
        ("assemble --idea a --expansion b --vocoder c --output d --refine-steps -1", "--refine-steps"),
        ("assemble --idea a --expansion b --vocoder c", "--output"),
        ("data render", "midi"),
        ("data render . --soundfont none.sf2 --output x --gain -1", "--gain"),
        ("doctor --fast", "--fast"),
        ("push nowhere me/model", "nowhere"),
        ("demo --port 99999", "--port"),
    ],
)
def test_wrong_values_and_missing_files(mistake, words, fragment):
    message = mistake(*words.split())
    assert any(part in message for part in fragment.split("|")), message


def test_the_longest_duration_is_the_pipelines():
    assert generate.MAX_SECONDS == MAX_SECONDS


def test_wrong_recordings(mistake, checkpoint, tmp_path):
    (tmp_path / "text.flac").write_text("no audio")
    (tmp_path / "folder.flac").mkdir()
    values = {"empty": np.zeros(0), "one": np.zeros(1), "nan": np.full(RATE, np.nan)}
    for name, samples in values.items():
        soundfile.write(tmp_path / f"{name}.aiff", samples.astype(np.float32), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "whole.flac", tone(2.0), RATE)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "whole.flac").read_bytes()[:9000])
    for name, fragment in (
        ("text.flac", "could not be decoded"),
        ("cut.flac", "could not be decoded"),
        ("folder.flac", "No audio file"),
        ("empty.aiff", "no samples"),
        ("one.aiff", "at least"),
        ("nan.aiff", "NaN"),
    ):
        assert fragment in mistake("expand", name, "--checkpoint", checkpoint), name


@pytest.mark.parametrize(
    ("file", "change", "fragment"),
    [
        ("expansion/config.json", {"hiden_size": 8}, "hidden_size"),
        ("expansion/config.json", {"num_attention_heads": 5}, "num_attention_heads"),
        ("expansion/config.json", {"hidden_size": "wide"}, "hidden_size"),
        ("vocoder/config.json", {"architecture": "organ"}, "organ"),
        ("idea/config.json", {"num_colums": 8}, "num_columns"),
        ("idea/config.json", {"mel_std": 0.0}, "mel_std"),
    ],
)
def test_wrong_configurations(mistake, checkpoint, tmp_path, file, change, fragment):
    folder = tmp_path / "broken"
    shutil.copytree(checkpoint, folder)
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**values, **change}))
    assert fragment in mistake("generate", "--checkpoint", folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("expansion/config.json", b"{"),
        ("vocoder/config.json", None),
        ("vocoder/model.safetensors", b"garbage"),
        ("vocoder/model.safetensors", None),
        ("idea/diffusion_pytorch_model.safetensors", b"garbage"),
        ("model_index.json", None),
        ("model_index.json", b"{"),
    ],
)
def test_damaged_folders(mistake, checkpoint, tmp_path, file, content):
    folder = tmp_path / "broken"
    shutil.copytree(checkpoint, folder)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    assert len(mistake("generate", "--checkpoint", folder)) > len("error: ")


def test_pickles_with_code_are_not_converted(mistake, tmp_path):
    import pickle

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "old.pt").write_bytes(pickle.dumps({"weight": Hostile()}))
    (tmp_path / "arguments.json").write_text("{}")
    (tmp_path / "broken.json").write_text("{")
    family = next(iter(CONVERTIBLE))
    words = ("convert", "--family", family, "--output", "new", "--checkpoint", "old.pt", "--arguments")
    mistake(*words, "arguments.json")
    assert "not valid JSON" in mistake(*words, "broken.json")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("missing", "extra", "words"),
    [("pyarrow", "train", "data build . --output x"), ("yaml", "train", "convert --family mel_reformer")],
)
def test_a_missing_extra_is_named(tmp_path, missing, extra, words):
    (tmp_path / "a.yaml").write_text("n_mels: 4")
    soundfile.write(tmp_path / "a.wav", tone(1.0), RATE)
    words += " --checkpoint a.pt --arguments a.yaml --output x" if "convert" in words else ""
    code = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['melreformer', *{words.split()!r}]; "
        "from melreformer_hf.cli.main import main; main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert result.returncode == 2, result.stderr
    expected = f"error: This needs {missing}: pip install 'melreformer_hf[{extra}]' (or '.[{extra}]' in a checkout)."
    assert result.stderr.strip().splitlines()[-1] == expected


def test_extras_are_those_of_the_project():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    named = {"yaml": "pyyaml", "pyarrow": "datasets"}
    for extra, packages in errors._EXTRAS.items():
        wanted = [re.match(r"[\w-]+", line).group() for line in project["optional-dependencies"][extra]]
        assert all(named.get(package, package) in wanted for package in packages), extra


def test_the_demo_says_what_a_checkpoint_lacks(mistake, tmp_path):
    pytest.importorskip("gradio")
    (tmp_path / "model_index.json").write_text('{"vocoder": ["melreformer_hf", "HifiVocoderModel"]}')
    assert "neither a composer nor an idea model" in mistake("demo", "--checkpoint", tmp_path)


def test_the_demo_says_what_to_install(mistake, monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'melreformer_hf[demo]'" in mistake("demo")


def test_bugs_and_asking_show_the_traceback(monkeypatch, capsys):
    def broken():
        raise TypeError("a bug")

    monkeypatch.setattr(errors, "expected_errors", lambda: ())
    monkeypatch.setattr(sys, "argv", ["melreformer", "--traceback", "generate", "--seconds", "-1"])
    with pytest.raises(ValueError, match="--seconds"):
        main()
    monkeypatch.setattr("melreformer_hf.cli.main.app", lambda **_: broken())
    with pytest.raises(TypeError, match="a bug"):
        main()
    monkeypatch.setattr("melreformer_hf.cli.main.app", lambda **_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130 and "interrupted" in capsys.readouterr().err


def test_help_without_words(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["melreformer"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and "generate" in capsys.readouterr().out


@pytest.mark.parametrize("command", [*COMMANDS, "data render", "data tokenize", "data"])
def test_every_help_teaches_with_an_example(command):
    result = CliRunner().invoke(app, [*command.split(), "--help"], terminal_width=200)
    assert result.exit_code == 0
    text = " ".join(result.output.split())
    assert f"Example: melreformer {command}" in text
