"""What configurations mean when they leave something out: every default and every named size, as they were published.

Old scripts build models by these names and defaults; a changed number would give them another model without a word. A
new family, field or size is added to the table by `python tests/test_configuration_defaults.py`, a changed number after
a second thought.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from transformers import PreTrainedConfig

import melreformer_hf
from melreformer_hf._registration import FAMILIES

TABLE = Path(__file__).parent / "fixtures" / "configuration_defaults.json"
WRITTEN: dict[str, dict] = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
_INHERITED = {field.name for field in dataclasses.fields(PreTrainedConfig)}


def values(config: PreTrainedConfig) -> dict:
    """The fields of its own, as JSON has them."""
    own = {field.name for field in dataclasses.fields(config)} - _INHERITED
    return json.loads(json.dumps({name: getattr(config, name) for name in sorted(own)}))


def table(family: str) -> dict:
    """Defaults of a family, and what its named sizes change."""
    config = getattr(melreformer_hf, FAMILIES[family].config)
    defaults = values(config())
    sizes = {name: values(config.preset(name)) for name in sorted(config._presets)}
    changed = {
        name: {key: value for key, value in size.items() if value != defaults[key]} for name, size in sizes.items()
    }
    return {"defaults": defaults, "presets": changed}


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_and_named_sizes_are_those_that_were_published(family):
    assert family in WRITTEN, "run this file to write it down"
    assert table(family) == WRITTEN[family]


if __name__ == "__main__":
    TABLE.write_text(json.dumps({name: table(name) for name in FAMILIES}, indent=1) + "\n", encoding="utf-8")
