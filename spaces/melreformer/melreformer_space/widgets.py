"""What the tabs share: players, fields, buttons, and how they are wired."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gradio as gr

from melreformer_space.limits import MAX_SEED, TEMPERATURE, TOP_P
from melreformer_space.players import Players
from melreformer_space.stops import visitor_of

# In the browser, before an event's inputs are sent: no sound of this page goes on, nor begins when a player gets a file.
SILENCE = """(...inputs) => {
  for (const audio of document.querySelectorAll("audio")) { audio.autoplay = false; audio.pause(); }
  return inputs;
}"""
HIDDEN = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def unchecked(component: gr.components.Component) -> gr.components.Component:
    """Lets what a program sends come through as it is: `check_number` refuses it in words, Gradio with a traceback."""
    component.preprocess = lambda payload: payload
    return component


def player_of(live: bool, name: str) -> gr.Audio:
    """The player of a tab. Its audio element is part of the page, without the drawing of a waveform: the roll follows
    it, and what silences the page finds it."""
    return gr.Audio(
        label="The piece, while it is made" if live else "The piece",
        elem_id=name,
        streaming=live,
        autoplay=live,
        interactive=False,
        buttons=[],
        waveform_options=gr.WaveformOptions(show_recording_waveform=False),
    )


def status_line() -> gr.Markdown:
    """Where a tab says what it does."""
    return gr.Markdown("", elem_classes="status", label="status")


def files_of(midi: bool) -> list[gr.File]:
    """What can be downloaded. Labels are the names of the API's outputs."""
    names = ["The piece as a WAV file", "The notes as a MIDI file"][: 1 + midi]
    with gr.Row():
        return [gr.File(label=name, interactive=False, min_width=220, elem_classes="download") for name in names]


def seed_fields(info: str) -> list[gr.components.Component]:
    """Seed, and whether it is a new one each time."""
    new_seed = gr.Checkbox(True, label="A new seed each time", elem_classes="new_seed")
    seed = gr.Number(0, precision=0, minimum=0, maximum=MAX_SEED, label="Seed", info=info, elem_classes="seed")
    return [unchecked(seed), unchecked(new_seed)]


def drawing_fields() -> list[gr.components.Component]:
    """How notes are drawn."""
    temperature = gr.Slider(
        *TEMPERATURE,
        value=1.0,
        step=0.05,
        label="Temperature",
        info="Below 1 the likelier notes come more often, above 1 the unlikelier.",
    )
    top_p = gr.Slider(
        *TOP_P,
        value=0.98,
        step=0.01,
        label="Share of likely notes",
        info="Chosen among the likeliest that together have this probability.",
    )
    return [unchecked(temperature), unchecked(top_p)]


def buttons_of(name: str, start: str, stop: str) -> list[gr.Button]:
    """The button that starts and the one that stops."""
    with gr.Row():
        return [
            gr.Button(name, variant="primary", elem_id=start, min_width=100),
            gr.Button("Stop", elem_id=stop, min_width=100),
        ]


def connect(
    task: str,
    function: Callable,
    start: gr.Button,
    inputs: Sequence[gr.components.Component],
    outputs: Sequence[gr.components.Component],
) -> None:
    """Wire the button that starts a task, whose outputs have its status: one piece at a time is made for all visitors."""
    (status,) = (output for output in outputs if isinstance(output, gr.Markdown))
    start.click(
        function,
        list(inputs),
        list(outputs),
        api_name=task,
        show_progress_on=status,
        concurrency_id="model",
        concurrency_limit=1,
    )


def connect_start(players: Players, task: str, start: gr.Button) -> None:
    """A press ends the visitor's other pieces and all sound of the page."""

    def begin(request: gr.Request) -> None:
        players.stops.start(visitor_of(request), task)

    start.click(begin, js=SILENCE, **HIDDEN)


def connect_stop(players: Players, stop: gr.Button, *tasks: str) -> None:
    """Stop ends the visitor's own pieces and all sound of the page."""

    def end(request: gr.Request) -> None:
        players.stops.stop(visitor_of(request), *tasks)

    stop.click(end, js=SILENCE, **HIDDEN)
