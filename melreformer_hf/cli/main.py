"""The command `melreformer`: parsing only, everything heavy is imported when a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

import melreformer_hf
from melreformer_hf._errors import EXIT_MISTAKE, told_in_one_line
from melreformer_hf._threads import sleep_while_waiting
from melreformer_hf.cli import (
    checkpoints,
    codec,
    data,
    demo,
    doctor,
    edit,
    evaluate,
    generate,
    midi,
    separate,
    sound,
    train,
)

app = typer.Typer(
    name="melreformer",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("generate")(generate.generate)
app.command("expand")(generate.expand)
app.command("encode")(codec.encode)
app.command("decode")(codec.decode)
app.command("separate")(separate.separate)
app.command("demo")(demo.demo)
app.command("train", context_settings=train.CONTEXT)(train.train_recipe)
app.command("evaluate")(evaluate.evaluate)
app.command("convert")(checkpoints.convert)
app.command("assemble")(checkpoints.assemble)
app.command("push")(checkpoints.push)
app.command("doctor")(doctor.doctor)
app.add_typer(data.app, name="data")
app.add_typer(midi.app, name="midi")
app.add_typer(edit.app, name="edit")
app.add_typer(sound.app, name="sound")


SETTINGS = {"traceback": False}


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"melreformer_hf {melreformer_hf.__version__}")
        raise typer.Exit


@app.callback()
def settings(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Long music: generate, continue MIDI files, expand, edit and separate recordings, train on your own music, measure, convert.

    Start with: melreformer generate --seconds 20 --output song.wav
    """
    SETTINGS["traceback"] = traceback


def main() -> None:
    """Run the command; mistakes of the user end with one line and exit code 2, not with a traceback."""
    sleep_while_waiting()  # torch reads it when a command imports it
    code = 0
    with told_in_one_line(lambda: SETTINGS["traceback"]):
        try:
            code = app(standalone_mode=False)
        except Exception as error:
            if type(error).__name__ != "NoArgsIsHelpError":
                raise
            print(error.format_message())
            raise SystemExit(EXIT_MISTAKE) from None
    if isinstance(code, int) and code:
        raise SystemExit(code)


__all__ = ["app", "main"]
