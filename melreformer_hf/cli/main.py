"""The command `melreformer`: parsing only, everything heavy is imported when a command runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from melreformer_hf.cli import checkpoints, data, demo, doctor, evaluate, generate
from melreformer_hf.cli.errors import EXIT_INTERRUPTED, EXIT_MISTAKE, expected_errors, is_usage_error, one_line

app = typer.Typer(
    name="melreformer",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("generate")(generate.generate)
app.command("expand")(generate.expand)
app.command("demo")(demo.demo)
app.command("evaluate")(evaluate.evaluate)
app.command("convert")(checkpoints.convert)
app.command("assemble")(checkpoints.assemble)
app.command("push")(checkpoints.push)
app.command("doctor")(doctor.doctor)
app.add_typer(data.app, name="data")


SETTINGS = {"traceback": False}


@app.callback()
def settings(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
) -> None:
    """Long music from small ideas: generate, expand recordings, build data, measure, convert checkpoints.

    Start with: melreformer generate --seconds 20 --output song.wav
    """
    SETTINGS["traceback"] = traceback


def main() -> None:
    """Run the command; mistakes of the user end with one line and exit code 2, not with a traceback."""
    try:
        code = app(standalone_mode=False)
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            raise SystemExit(EXIT_MISTAKE) from None
        mistake = is_usage_error(error) or isinstance(error, expected_errors())
        if not mistake or SETTINGS["traceback"]:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(EXIT_MISTAKE) from error
    if isinstance(code, int) and code:
        raise SystemExit(code)


__all__ = ["app", "main"]
