"""README.md as the description of the package: with whole addresses where MELREFORMER_HOME names the repository's.

    MELREFORMER_HOME=https://github.com/USER/melreformer_hf python3 -m build

Indexes show the description without the files beside it; links into the repository would lead nowhere there.
"""

import os
import re
from pathlib import Path

from setuptools import setup


def with_whole_addresses(text: str, home: str) -> str:
    """Links to files of the repository as addresses below `home`, pictures as those of their content."""
    text = re.sub(r"(!\[[^\]]*\]\()(?!\w+:|#)([^)]+)", rf"\1{home}/raw/main/\2", text)
    return re.sub(r"(?<=\]\()(?!\w+:|#)([^)]+)", rf"{home}/blob/main/\1", text)


def description() -> str:
    """The text for indexes."""
    text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    home = os.environ.get("MELREFORMER_HOME", "").rstrip("/")
    return with_whole_addresses(text, home) if home else text


if __name__ == "__main__":
    setup(long_description=description(), long_description_content_type="text/markdown")
