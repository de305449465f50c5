"""A piano roll that moves with the player: the notes go to the browser as JSON, `roll.js` draws them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import gradio as gr

from melreformer_hf.pipelines.composing import Score
from melreformer_hf.processing.midi.notes import MidiNote

TEMPLATE = """<canvas class="view" role="img"></canvas><canvas class="map" aria-hidden="true"></canvas>
<p class="legend"><span class="given"></span><span class="fresh"></span></p>"""
CSS = """
canvas { display: block; width: 100%; cursor: pointer; touch-action: manipulation; }
.view { height: 320px; }
.map { height: 36px; margin-top: 6px; }
.legend { margin: 4px 0 0 46px; min-height: 1.4em; font-size: 13px; color: var(--body-text-color-subdued); }
.legend span:not(:empty)::before {
  content: ""; display: inline-block; width: 10px; height: 10px; margin-right: 5px; border-radius: 2px;
}
.legend span:not(:empty) { margin-right: 14px; }
.legend .given::before { background: #d97706; }
.legend .fresh::before { background: #4f46e5; }
"""
SCRIPT = (Path(__file__).parent / "roll.js").read_text(encoding="utf-8")


_NUMBER = {"type": "number"}
_ROWS = {"type": "array", "items": {"type": "array", "items": _NUMBER}}
# What programs get.
SCHEMA = {
    "type": "object",
    "description": "notes: [onset in s, length in s, pitch, velocity, 1 if it was given else 0]; pedal: [down, up] in s; "
    "seconds: length of the piece; made: how much of it there is; gap: [begin, end] of what was written anew, or empty",
    "properties": {
        "seconds": _NUMBER,
        "made": _NUMBER,
        "notes": _ROWS,
        "pedal": _ROWS,
        "gap": {"type": "array", "items": _NUMBER},
    },
}


def piano_roll(player: str, label: str, **settings: Any) -> gr.HTML:
    """The notes of a piece as JSON, drawn as a roll that follows a player.

    Args:
        player: `elem_id` of the player.
        label: name of the output.
        settings: others of the component.
    """
    # No class of its own: Gradio would write a file of its events beside this one.
    roll = gr.HTML(
        value=None,
        label=label,
        html_template=TEMPLATE,
        css_template=CSS,
        js_on_load=SCRIPT,
        apply_default_css=False,
        player=player,
        **settings,
    )
    roll.api_info = lambda: SCHEMA
    return roll


def roll_of(
    score: Score,
    seconds: float,
    made: float | None = None,
    given: Collection[MidiNote] = (),
    gap: tuple[float, float] | None = None,
) -> dict:
    """The value of a `piano_roll`.

    Args:
        score: what is known of the piece.
        seconds: its length.
        made: how much of it there is; the rest stays grey. `None` is all.
        given: those of its notes that the visitor gave.
        gap: what is written anew, in seconds.
    """
    rows, pedal = score.in_seconds()
    notes = [[*row, int(note in given)] for note, row in zip(score.notes, rows, strict=True)]
    return {
        "seconds": round(seconds, 3),
        "made": round(seconds if made is None else min(made, seconds), 3),  # sound ends with a whole frame
        "notes": notes,
        "pedal": [list(interval) for interval in pedal],
        "gap": list(gap or ()),
    }
