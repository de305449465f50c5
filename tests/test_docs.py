"""What README and the guides promise: links lead somewhere, commands and options exist, snippets compile, shapes hold."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from melreformer_hf.cli.main import app
from melreformer_hf.configs import find_config
from melreformer_hf.models.mel_reformer.configuration_mel_reformer import MelReformerConfig
from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.recipes import RECIPES, find_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "spaces").glob("*/README.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """Every `melreformer ...` of a page, in blocks and in sentences, as words."""
    joined = text.replace("\\\n", " ")
    found = re.findall(r"(?:^|&& |`|    )(melreformer [a-z][^`\n&]*)", joined, re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).is_file(), target


def test_every_guide_is_listed():
    listed = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"]({page.name})" in listed, page.name
        assert f"](docs/{page.name})" in readme, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets_compile_and_files_exist(page):
    text = page.read_text(encoding="utf-8")
    for language, body in BLOCK.findall(text):
        if language == "python":
            compile(body, str(page), "exec")
    for name in re.findall(r"\b((?:examples|melreformer_hf|spaces|benchmarks)/[\w./-]+\.(?:py|yaml|md))", text):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_their_options_exist(page):
    for words in commands(page.read_text(encoding="utf-8")):
        command = get_command(app)
        while words and hasattr(command, "commands") and not words[0].startswith("--"):
            assert words[0] in command.commands, words
            command = command.commands[words.pop(0)]
        if command.name == "train":
            continue  # its words have a test of their own
        known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= known, words


def trainings(text: str) -> list[list[str]]:
    """Every training of a page, typed in any of the three ways: its recipe and the words after it."""
    joined = text.replace("\\\n", " ")
    start = r"(?:melreformer train|melreformer_hf\.training|examples/train_(?=\w+\.py)) ?"
    found = re.findall(start + r"([a-z]\w+(?:\.py)? --[^`\n&]*)", joined)
    return [shlex.split(line.replace(".py", "", 1) if ".py " in line else line, comments=True) for line in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_trainings_and_their_settings_exist(page):
    needed = ["--dataset", "d", "--output_dir", "o", "--max_steps", "1"]
    for recipe, *words in trainings(page.read_text(encoding="utf-8")):
        if "..." in words or words == ["--help"]:
            continue
        TrainingConfig.from_command_line(find_recipe(recipe), [*needed, *words])


def test_trainings_are_found_on_the_pages():
    found = [words[0] for page in PAGES for words in trainings(page.read_text(encoding="utf-8"))]
    assert set(found) <= set(RECIPES) and len(set(found)) >= 3, found
    typed = (
        "accelerate launch examples/train_vocoder.py --config tiny\nmelreformer train vocoder --config \\\n  tiny  # c"
    )
    assert trainings(typed) == [["vocoder", "--config", "tiny"]] * 2


def test_the_settings_of_the_scaling_guide_are_what_it_says():
    """Each row names a field, and its two columns hold the values of the tiny and the base expansion where it lists some."""
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)`(?: or `\w+`)? \| ([^|]*) \| ([^|]*) \|", text, re.MULTILINE)
    values = {}
    for size in ("tiny", "base"):
        config = TrainingConfig.from_yaml(find_config(size, "expansion"), {"dataset": "d"})
        model = MelReformerConfig.preset(config.options["preset"], **config.model)
        values[size] = {**config.to_dict(), **{f"options.{name}": value for name, value in config.options.items()}}
        values[size] |= {f"model.{name}": value for name, value in model.to_dict().items()}
    assert "model.fold_size" in dict((row[0], row) for row in rows)
    for name, *told in rows:
        if name.startswith(("vocoder", "expansion", "idea", "conv")):
            continue  # the table of sizes
        for size, value in zip(("tiny", "base"), told, strict=True):
            assert name in values[size], name
            number = re.match(r"[\d,.]+", value)
            if number:
                assert float(number.group().replace(",", "")) == values[size][name], (name, size)


def test_the_figure_has_the_shapes_of_the_bundled_pipeline():
    pipe = MelReformerPipeline.from_pretrained("piano-tiny")
    frames, mel, columns = pipe.frames_of(20), pipe.mel_config, pipe.idea.config.num_columns
    samples, fold = frames * mel.hop_length, pipe.expansion.config.fold_size
    figure = BLOCK.search((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")).group(2)
    before, after = pipe.vocoder.receptive_field_frames
    assert before == after
    for shown in (
        f"noise (1, 1, {mel.num_mel_bins}, {columns})",
        f"idea (1, {mel.num_mel_bins}, {columns})",
        f"num_frames (1,) = [{frames}]",
        f"log-mel (1, {mel.num_mel_bins}, {frames})",
        f"means of {frames / columns:.1f} frames",
        f"{-(-frames // fold)} steps of {fold} frames",
        f"reads {before} frames to each side",
        f"waveform (1, {samples})",
    ):
        assert shown in figure, shown
