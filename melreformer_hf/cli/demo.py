"""`melreformer demo`: the Space on your own machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

APP = "spaces/melreformer/app.py"


def find_app() -> Path:
    """The Space's app: in the checkout that this package runs from, or where the installation put it.

    Raises:
        FileNotFoundError: neither is there.
    """
    checkout = Path(__file__).parents[2] / APP
    if checkout.is_file():
        return checkout
    try:
        files = importlib.metadata.files("melreformer_hf") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.as_posix().endswith(f"share/melreformer_hf/{APP}"):
            return Path(str(file.locate())).resolve()
    raise FileNotFoundError(f"The demo's {APP} was not installed with the package; run it from a checkout.")


def load_app() -> ModuleType:
    """Import the Space's app.

    Raises:
        ImportError: gradio is not installed; says how to install it.
        FileNotFoundError: the app was not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ImportError("The demo needs gradio: pip install 'melreformer_hf[demo]' (or '.[demo]' in a checkout).")
    specification = importlib.util.spec_from_file_location("melreformer_space_app", find_app())
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def demo(
    checkpoint: Annotated[str, typer.Option(help="Pipeline: bundled name, folder, or Hub id.")] = "piano-tiny",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port. Default: the first free from 7860.")
    ] = None,
    sounds: Annotated[
        str, typer.Option(help="Pipeline of sounds for the tab of them; none leaves it out.")
    ] = "sounds-tiny",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads. Default: at most one per available core.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:NUMBER.")] = "auto",
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Serve the demo for a browser: generate, listen while it streams, work on MIDI files, expand and separate recordings. Needs the
    extra `demo`.

    Example: melreformer demo --port 7860
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    space = load_app()
    from melreformer_hf.cli.generate import load_pipeline
    from melreformer_hf.pipelines.loading import parts_of

    parts = parts_of(checkpoint)
    sounds = checkpoint if "mel_vqvae" in parts else sounds
    if not parts & {"composer", "idea", "mel_vqvae"}:
        raise ValueError(
            f"--checkpoint {checkpoint} has neither a composer nor an idea model, nor sounds: there is nothing to show."
        )
    pipes = {
        name: load_pipeline(checkpoint, device, threads, notes=name == "notes") if part in parts else None
        for name, part in (("notes", "composer"), ("ideas", "idea"))
    }
    if sounds != "none":
        from melreformer_hf.cli.sound import load_sounds

        pipes["sounds"] = load_sounds(sounds, device, threads, "--sounds")
    from melreformer_hf.pipelines.pipeline_separation import SeparationPipeline

    where = str(next(pipe.device for pipe in pipes.values() if pipe is not None))
    blocks = space.build_demo(**pipes, separation=SeparationPipeline.from_pretrained("separation-tiny").to(where))
    settings = space.launch_settings()
    _, address, _ = blocks.launch(
        server_name=host, server_port=port, inbrowser=open_browser, quiet=True, prevent_thread_lock=True, **settings
    )
    typer.echo(f"The demo runs at {address} until Ctrl+C is pressed.")
    blocks.block_thread()


__all__ = ["demo", "find_app", "load_app"]
