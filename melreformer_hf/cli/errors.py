"""Mistakes of the user end with one line on stderr and exit code 2; everything else is a bug and shows its traceback."""

from __future__ import annotations

import sys
from pathlib import Path

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
    "train": ("accelerate", "datasets", "psutil", "pyarrow", "tensorboard", "yaml"),
    "demo": ("gradio",),
    "eval": ("evaluate", "librosa", "scipy"),
    "midi": ("mido", "symusic"),
}


def expected_errors() -> tuple[type[BaseException], ...]:
    """Errors that tell of wrong input rather than of a bug: bad values, files, settings, networks, missing extras."""
    found: list[type[BaseException]] = [ValueError, OSError, ImportError]
    for module, name in _LIBRARY_ERRORS:
        error = getattr(sys.modules.get(module), name, None)
        if isinstance(error, type):
            found.append(error)
    return tuple(found)


def is_usage_error(error: BaseException) -> bool:
    """Whether the command line itself was wrong; told by shape, because typer's base class moved between versions."""
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


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
    elif isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.strerror}: {error.filename}"
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


def check_output_file(path: Path, suffix: str) -> None:
    """Refuse a file that could not be written before hours of work go into it.

    Raises:
        ValueError: another suffix, or a folder of that name.
        FileNotFoundError: the folder does not exist.
    """
    if path.suffix.lower() != suffix:
        raise ValueError(f"--output must be a {suffix} file, got {path}.")
    if path.is_dir():
        raise ValueError(f"--output must be a file, got the folder {path}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"No folder {path.parent} for {path.name}; create it first.")


__all__ = [
    "EXIT_INTERRUPTED",
    "EXIT_MISTAKE",
    "check_output_file",
    "expected_errors",
    "extra_of",
    "is_usage_error",
    "one_line",
]
