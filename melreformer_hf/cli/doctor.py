"""`melreformer doctor`: what is installed and what will be used."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from pathlib import Path

import typer

from melreformer_hf._threads import choose_threads, describe_threads
from melreformer_hf.hub.bundled import BUNDLED

PACKAGES = {
    "core": ("torch", "transformers", "diffusers", "huggingface_hub", "safetensors", "numpy", "soundfile", "soxr"),
    "train": ("accelerate", "datasets", "tensorboard", "pyarrow"),
    "demo": ("gradio",),
    "eval": ("evaluate", "librosa", "scipy"),
    "midi": ("mido",),
}


def doctor() -> None:
    """Report versions, device, audio back-ends, and what the package will use.

    Example: melreformer doctor
    """
    typer.echo(
        f"melreformer_hf {_version('melreformer_hf')}, Python {platform.python_version()}, {platform.platform()}"
    )
    for extra, names in PACKAGES.items():
        found = ", ".join(f"{name} {_version(name)}" for name in names)
        typer.echo(f"{extra:>6}: {found}")
    typer.echo(f"device: {_device()}")
    typer.echo(f" audio: {_audio()}")
    typer.echo(f"render: {_render()}")
    typer.echo(f"models: {_bundled()}")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"cuda ({torch.cuda.get_device_name(0)}) will be used"
    choose_threads()
    return f"cpu will be used, {describe_threads()}"


def _audio() -> str:
    import soundfile

    formats = [name for name in ("WAV", "FLAC", "OGG", "MP3") if name in soundfile.available_formats()]
    ffmpeg = "found" if shutil.which("ffmpeg") else "missing (only streamed audio in the demo needs it)"
    return f"soundfile with libsndfile {soundfile.__libsndfile_version__} reads and writes {', '.join(formats)}; ffmpeg {ffmpeg}"


def _render() -> str:
    fluidsynth = shutil.which("fluidsynth")
    font = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
    return f"fluidsynth {'found' if fluidsynth else 'missing (only `data render` needs it)'}; FluidR3 " + (
        f"at {font}" if font.is_file() else "not at its usual place"
    )


def _bundled() -> str:
    found = sorted(path.parent for path in BUNDLED.glob("*/README.md"))  # what has a card is a model or a pipeline
    if not found:
        return "none bundled"
    sizes = [sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6 for path in found]
    return ", ".join(f"{path.name} ({size:.1f} MB)" for path, size in zip(found, sizes, strict=True))


__all__ = ["doctor"]
