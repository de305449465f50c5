"""The package as a module, and its version."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from typer.testing import CliRunner

import melreformer_hf
from melreformer_hf.cli.main import app

ROOT = Path(__file__).parents[2]


def test_the_version_is_told_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    result = subprocess.run(
        [sys.executable, "-m", "melreformer_hf", "--version"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert (
        result.stdout.strip()
        == f"melreformer_hf {project['version']}"
        == f"melreformer_hf {melreformer_hf.__version__}"
    )
    assert CliRunner().invoke(app, ["--version"]).output == result.stdout
