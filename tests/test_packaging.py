"""What is put into packages: links that lead somewhere, every file that a wheel and an archive need."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOME = "https://example.org/me/melreformer_hf"


def test_links_of_the_description_are_whole(monkeypatch):
    setup = runpy.run_path(str(ROOT / "setup.py"))
    monkeypatch.setenv("MELREFORMER_HOME", f"{HOME}/")
    text = setup["description"]()
    targets = re.findall(r"\]\(([^)]+)", text)
    assert len(targets) > 10 and all(re.match(r"https?://|#", target) for target in targets), targets
    assert "![An idea of 256 columns" in text and f"]({HOME}/raw/main/docs/media/piano-tiny.png)]" in text
    assert f"]({HOME}/blob/main/docs/training.md)" in text
    for target in re.findall(rf"{HOME}/(?:raw|blob)/main/([^)#]+)", text):
        assert (ROOT / target).is_file(), target
    monkeypatch.delenv("MELREFORMER_HOME")
    assert setup["description"]() == (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_archive_has_what_its_readme_speaks_of():
    listed = (ROOT / "MANIFEST.in").read_text()
    for name in ("benchmarks", "docs", "examples", "spaces", "tests"):
        assert f"graft {name}\n" in listed and (ROOT / name).is_dir()
    assert "constraints.txt" in listed


def test_the_wheel_has_every_file_that_is_no_code():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["melreformer_hf"]
    package = ROOT / "melreformer_hf"
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    others = [path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert len(others) > 15 and not [path for path in others if path not in packed]


def test_every_module_of_a_file_is_in_a_package():
    package = ROOT / "melreformer_hf"
    folders = {path.parent for path in package.rglob("*.py")}
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    data = {path.parent for pattern in packed["melreformer_hf"] for path in package.glob(pattern)}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file() and folder not in data]
