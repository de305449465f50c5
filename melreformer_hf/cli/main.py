"""The command `melreformer`: parsing only, everything heavy is imported when a command runs."""

from __future__ import annotations

import sys

import typer

from melreformer_hf.cli import data, doctor, generate, tools

app = typer.Typer(
    name="melreformer",
    help="Long music from small ideas: generate, expand recordings, build data, convert checkpoints.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("generate")(generate.generate)
app.command("expand")(generate.expand)
app.command("convert")(tools.convert)
app.command("assemble")(tools.assemble)
app.command("push")(tools.push)
app.command("doctor")(doctor.doctor)
app.add_typer(data.app, name="data")


def main() -> None:
    """Run the command; mistakes of the user end with one line and exit code 2, not with a traceback."""
    try:
        app()
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


__all__ = ["app", "main"]
