"""Mistakes of the user end with one line on stderr and exit code 2; everything else is a bug and shows its traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130

# Raised by libraries that a command may never load: looked up by name among the modules that are there.
_LIBRARY_ERRORS = (
    ("huggingface_hub.errors", "StrictDataclassError"),
    ("huggingface_hub.errors", "HfHubHTTPError"),
    ("safetensors", "SafetensorError"),
    ("httpx", "HTTPError"),
    ("httpx2", "HTTPError"),
    ("soundfile", "SoundFileError"),
    ("yaml", "YAMLError"),
    ("torch", "OutOfMemoryError"),
    ("pyarrow", "ArrowException"),
)

# Packages that are not part of the core, by the extra that brings them.
_EXTRAS = {
    "train": ("accelerate", "datasets", "jsonargparse", "psutil", "pyarrow", "tensorboard", "yaml"),
    "demo": ("gradio",),
    "eval": ("evaluate", "librosa", "scipy"),
    "midi": ("mido",),
}

# How libraries that are not Python's own say that a file could not be written; torch.save raises a RuntimeError.
_WRITING_FAILED = ("PytorchStreamWriter failed", "file write failed", "unexpected pos", "No space left on device")


def expected_errors() -> tuple[type[BaseException], ...]:
    """Errors that tell of wrong input rather than of a bug: bad values, files, settings, networks, missing extras."""
    found: list[type[BaseException]] = [ValueError, OSError, ImportError, FloatingPointError]
    for module, name in _LIBRARY_ERRORS:
        error = getattr(sys.modules.get(module), name, None)
        if isinstance(error, type):
            found.append(error)
    return tuple(found)


def is_expected(error: BaseException) -> bool:
    """Whether an error is told in one line: a mistake of the user, or of the machine (a full disk)."""
    return is_usage_error(error) or isinstance(error, expected_errors()) or _is_failed_write(error)


def is_usage_error(error: BaseException) -> bool:
    """Whether the command line itself was wrong; told by shape, because typer's base class moved between versions."""
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def _is_failed_write(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WRITING_FAILED)


def extra_of(module: str | None) -> str | None:
    """The extra of this package that brings a module, if one does."""
    package = (module or "").partition(".")[0]
    return next((extra for extra, packages in _EXTRAS.items() if package in packages), None)


def one_line(error: BaseException) -> str:
    """The message of an error on one line.

    Validation errors of configurations wrap the error that says what is wrong; that one is reported.
    """
    if is_usage_error(error):
        context = getattr(error, "ctx", None)
        hint = f" Try `{context.command_path} --help`." if context is not None else ""
        text = f"{error.format_message()}{hint}"
    elif type(error).__name__ == "StrictDataclassClassValidationError" and error.__cause__ is not None:
        text = str(error.__cause__)
    elif isinstance(error, ModuleNotFoundError) and (extra := extra_of(error.name)) is not None:
        text = f"This needs {error.name}: pip install 'melreformer_hf[{extra}]' (or '.[{extra}]' in a checkout)."
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC or "No space left on device" in str(error):
        place = f": {error.filename}" if getattr(error, "filename", None) else "."
        text = f"The disk is full{place} What was complete before is kept; make room and run the same command again."
    elif _is_failed_write(error):
        text = f"A file could not be written, most likely because the disk is full: {error}"
    elif isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.strerror}: {error.filename}"
    else:
        # A worker process of a DataLoader sends its whole traceback as the message; the last line says what is wrong.
        whole = str(error) or type(error).__name__
        text = whole.strip().splitlines()[-1] if "Original Traceback" in whole else whole
    return " ".join(text.split())


@contextmanager
def told_in_one_line(traceback: Callable[[], bool] = bool) -> Iterator[None]:
    """Ends the process with one line on stderr where something expected goes wrong; bugs pass through.

    Args:
        traceback: whether to show where every error came from, asked when one comes.

    Raises:
        SystemExit: 2 after a mistake, 130 after an interruption.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except Exception as error:
        if traceback() or not is_expected(error):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(EXIT_MISTAKE) from error


__all__ = [
    "EXIT_INTERRUPTED",
    "EXIT_MISTAKE",
    "expected_errors",
    "extra_of",
    "is_expected",
    "is_usage_error",
    "one_line",
    "told_in_one_line",
]
