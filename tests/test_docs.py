"""What README and the guides promise: links lead somewhere, commands and options exist, snippets compile, shapes hold."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from melreformer_hf.cli.main import app
from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline

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
        while words and hasattr(command, "commands"):
            assert words[0] in command.commands, words
            command = command.commands[words.pop(0)]
        known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= known, words


def test_options_of_the_trainings_exist():
    from melreformer_hf.training.config import TrainingConfig, _parser
    from melreformer_hf.training.recipes.expansion import ExpansionRecipe

    parser: argparse.ArgumentParser = _parser(TrainingConfig, ExpansionRecipe)
    known = {name for action in parser._actions for name in action.option_strings}
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"examples/train_\w+\.py ([^`\n]*)", text):
            options = re.findall(r"--[\w.]+", line.split("#")[0])
            assert {option for option in options if "." not in option} <= known, line


def test_the_figure_has_the_shapes_of_the_bundled_pipeline():
    pipe = MelReformerPipeline.from_pretrained("piano-tiny")
    frames, mel, columns = pipe.frames_of(20), pipe.mel_config, pipe.unet.config.num_columns
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
