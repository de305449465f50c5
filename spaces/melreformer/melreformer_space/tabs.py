"""The tabs: what stands where."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from melreformer_space.edits import edited_figure
from melreformer_space.ideas import figures
from melreformer_space.limits import (
    ADDED_SECONDS,
    MAX_MIDI_MEGABYTES,
    MAX_MIDI_SECONDS,
    MAX_SECONDS,
    MAX_UPLOAD_MEGABYTES,
    MIN_SECONDS,
    NEW_SECONDS,
    SEAM_SECONDS,
    STEPS,
    STRETCH,
)
from melreformer_space.players import EDIT_TASKS, MIDI_TASKS, Players
from melreformer_space.roll import piano_roll
from melreformer_space.sound import emptied
from melreformer_space.stops import visitor_of
from melreformer_space.widgets import (
    HIDDEN,
    SILENCE,
    buttons_of,
    connect,
    connect_start,
    connect_stop,
    drawing_fields,
    files_of,
    player_of,
    seed_fields,
    status_line,
    unchecked,
)

FOLDER = Path(__file__).parents[1]
RECORDING, MELODY = FOLDER / "prelude.ogg", FOLDER / "melody.mid"
LIMITS = f"""Up to {MAX_SECONDS} seconds and {MAX_UPLOAD_MEGABYTES} MB of WAV, FLAC, OGG or MP3 are shrunk to an idea and
expanded again, as loud as they were. The bundled model knows piano only: whatever it hears, it plays as piano."""
MIDI_LIMITS = (
    f"Up to {MAX_MIDI_SECONDS} seconds and {MAX_MIDI_MEGABYTES} MB. Everything is played as piano; drums are not."
)
EAR_LIMITS = f"Up to {MAX_SECONDS} seconds and {MAX_UPLOAD_MEGABYTES} MB of WAV, FLAC, OGG or MP3 of a piano."
EDIT_LIMITS = f"""Up to {MAX_SECONDS} seconds and {MAX_UPLOAD_MEGABYTES} MB of WAV, FLAC, OGG or MP3. What is kept is kept
to the last sample; what is new is piano."""
STEM_LIMITS = f"""Up to {MAX_SECONDS} seconds and {MAX_UPLOAD_MEGABYTES} MB of WAV, FLAC, OGG or MP3, mono or stereo. The two
stems add up to the recording."""
ROLL, DRAWING = "The notes", "How notes are drawn"
ACTIONS = {
    "continue": "Continue",
    "fill": "Fill a gap",
    "accompany": "Accompany",
    "perform": "Perform",
    "transcribe": "Transcribe",
}
EDITS = {
    "vary": ("Vary", 0.5),
    "blend": ("Blend", 0.0),
    "inpaint": ("Inpaint a span", 1.0),
    "extend": ("Extend", 0.8),
    "loop": ("Make a loop", 0.8),
}


def _recording_field(name: str) -> gr.Audio:
    recording = gr.Audio(label="Recording", type="filepath", sources=["upload", "microphone"], elem_id=name)
    if RECORDING.is_file():
        gr.Examples(
            [[str(RECORDING)]],
            [recording],
            label="Example",
            example_labels=["Opening of Bach's prelude BWV 846, 15 s"],
            api_visibility="private",
        )
    return recording


def generate_tab(players: Players) -> None:
    """Notes are composed and performed, or an idea is drawn and expanded."""
    sources = players.sources
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            source = gr.Radio(
                [(f"from {name}", name) for name in sources],
                value=sources[0],
                show_label=False,
                label="Source",
                elem_id="source",
                visible=len(sources) > 1,
            )
            seconds = gr.Slider(MIN_SECONDS, MAX_SECONDS, value=20, step=1, label="Length in seconds")
            seed, new_seed = seed_fields("The same seed and settings give the same music.")
            with gr.Accordion(DRAWING, open=False, visible=sources[0] == "notes") as drawing:
                temperature, top_p = drawing_fields()
            with gr.Group(visible=sources[0] == "idea") as denoising:
                own, origins = (players.ideas.steps, players.ideas.sources) if players.ideas else (STEPS[0], ["noise"])
                idea_from = gr.Radio(
                    [(f"of {name}", name) for name in origins],
                    value=origins[0],
                    label="Idea",
                    info="Notes are written first and give it a beat; noise is faster.",
                    visible=len(origins) > 1,
                )
                steps = gr.Slider(
                    *STEPS, value=own, step=1, label="Denoising steps", info="More take longer and change little."
                )
            start, stop = buttons_of("Generate", "generate", "stop")
            inputs = [
                unchecked(field) for field in (seconds, seed, new_seed, source, temperature, top_p, steps, idea_from)
            ]
            lengths = ((10, 1), (20, 7), (60, 42))
            gr.Examples(
                [[length, number, False] for length, number in lengths],
                [seconds, seed, new_seed],
                label="Examples: choose one, then press Generate",
                example_labels=[f"{length} s, seed {number}" for length, number in lengths],
                api_visibility="private",
            )
        with gr.Column(scale=2, min_width=320):
            sound = player_of(players.live, "player_generate")
            status = status_line()
            roll = piano_roll("player_generate", ROLL, visible=sources[0] == "notes", elem_id="roll_generate")
            with gr.Row(visible=sources[0] == "idea") as pictures:
                idea, mel = (
                    figures(players.ideas) if players.ideas else (gr.Image(visible=False), gr.Image(visible=False))
                )
            wav, midi = files_of(midi=True)

    def choose(chosen: str) -> list[dict]:
        return [gr.update(visible=chosen == name) for name in ("notes", "idea")]

    def show(chosen: str, request: gr.Request) -> list[dict]:
        new = players.stops.start(visitor_of(request), "generate")
        # What is being made stays in sight: Gradio drops the press that would begin something else.
        return [*choose(chosen), gr.update(visible=chosen == "notes")] if new else [gr.skip()] * 3

    source.change(choose, source, [drawing, denoising], **HIDDEN)
    start.click(show, source, [roll, pictures, midi], js=SILENCE, **HIDDEN)
    connect("generate", players.generate, start, inputs, [sound, wav, midi, roll, idea, mel, status, seed])
    connect_stop(players, stop, "generate")


def expand_tab(players: Players) -> None:
    """A recording is shrunk to its idea, which is expanded."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            gr.Markdown(LIMITS)
            recording = _recording_field("recording")
            stretch = gr.Slider(
                *STRETCH,
                value=1.0,
                step=0.25,
                label="Stretch",
                info=f"Length of the result, in times the recording's; {MAX_SECONDS} seconds at most.",
            )
            start, stop = buttons_of("Expand its idea", "expand", "stop_expanding")
        with gr.Column(scale=2, min_width=320):
            sound = player_of(players.live, "player_expand")
            status = status_line()
            with gr.Row():
                pictures = figures(players.ideas)
            (wav,) = files_of(midi=False)
    connect_start(players, "expand", start)
    connect("expand", players.expand, start, [recording, unchecked(stretch)], [sound, wav, *pictures, status])
    connect_stop(players, stop, "expand")


def separate_tab(players: Players) -> None:
    """A recording is split into vocals and instrumental, each with a player of its own."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            gr.Markdown(STEM_LIMITS)
            recording = _recording_field("mixture")
            start, stop = buttons_of("Separate", "separate", "stop_separating")
        with gr.Column(scale=2, min_width=320):
            stems = [
                gr.Audio(label=name, interactive=False, elem_id=f"stem_{name.lower()}")
                for name in ("Vocals", "Instrumental")
            ]
            status = status_line()
            picture = gr.Image(label="The recording and its stems", interactive=False, elem_classes="picture")
    connect_start(players, "separate", start)
    connect("separate", players.separate, start, [recording], [*stems, picture, status])
    connect_stop(players, stop, "separate")


def edit_tab(players: Players) -> None:
    """A recording is varied, blended with another, filled, extended or looped."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            words = [(name, task) for task, (name, _) in EDITS.items()]
            action = gr.Radio(words, value="inpaint", show_label=False, elem_id="edit_action")
            gr.Markdown(EDIT_LIMITS)
            recording = _recording_field("edited")
            groups, fields = _edit_fields()
            strength = gr.Slider(
                0,
                1,
                value=EDITS["inpaint"][1],
                step=0.05,
                label="Strength",
                info="How much of what was there is forgotten: 0 nothing, 1 all of it.",
            )
            seed, new_seed = seed_fields("The same recording, seed and settings give the same music.")
            with gr.Accordion("How ideas are drawn", open=False):
                steps = gr.Slider(*STEPS, value=20, step=1, label="Denoising steps")
            with gr.Row():
                starts = {
                    task: gr.Button(name, variant="primary", elem_id=task, min_width=100, visible=task == "inpaint")
                    for name, task in words
                }
                stop = gr.Button("Stop", elem_id="stop_edit", min_width=100)
        with gr.Column(scale=2, min_width=320):
            sound = player_of(players.live, "player_edit")
            status = status_line()
            picture = edited_figure()
            (wav,) = files_of(midi=False)

    def choose(chosen: str) -> list[dict]:
        shown = [gr.update(visible=task == chosen) for task in (*groups, *starts)]
        return [*shown, gr.update(value=EDITS[chosen][1])]

    def measure(file: str | None, request: gr.Request) -> list[dict]:
        """Sliders as long as what was uploaded; what it sounded like before is over."""
        players.stops.stop(visitor_of(request), *EDIT_TASKS)
        length = players.edits.length_of(file)
        span = [gr.update(maximum=length, value=round(length * share, 1)) for share in (0.4, 0.6)]
        return [emptied(players.live), *span]

    action.change(choose, action, [*groups.values(), *starts.values(), strength], **HIDDEN)
    recording.change(measure, recording, [sound, *fields["inpaint"]], js=SILENCE, **HIDDEN)
    for task, start in starts.items():
        connect_start(players, task, start)
        drawing = [unchecked(strength), seed, new_seed, unchecked(steps)]
        inputs = [recording, *fields[task], *drawing]
        connect(task, getattr(players, task), start, inputs, [sound, wav, picture, status, seed])
    connect_stop(players, stop, *EDIT_TASKS)


def _edit_fields() -> tuple[dict[str, gr.Group], dict[str, list[gr.components.Component]]]:
    """Groups of settings by the edits that they belong to, and the fields in them."""
    with gr.Group(visible=False) as blending:
        other = gr.Audio(label="Another recording", type="filepath", sources=["upload"], elem_id="other")
        weight = gr.Slider(0, 1, value=0.5, step=0.05, label="Weight", info="0 is the first, 1 the other.")
    with gr.Group() as inpainting:
        start = gr.Slider(0, MAX_SECONDS, value=2, step=0.1, label="New from, in seconds", elem_id="span_begin")
        end = gr.Slider(0, MAX_SECONDS, value=4, step=0.1, label="to", elem_id="span_end")
    with gr.Group(visible=False) as extending:
        left = gr.Slider(*ADDED_SECONDS, value=0, step=0.5, label="Seconds to add before")
        right = gr.Slider(*ADDED_SECONDS, value=8, step=0.5, label="Seconds to add after")
    with gr.Group(visible=False) as looping:
        seam = gr.Slider(
            *SEAM_SECONDS,
            value=2,
            step=0.5,
            label="New seconds at the seam",
            info="Half at the end, half at the beginning.",
        )
    for field in (weight, start, end, left, right, seam):
        unchecked(field)
    groups = {"blend": blending, "inpaint": inpainting, "extend": extending, "loop": looping}
    fields = {"vary": [], "blend": [other, weight], "inpaint": [start, end], "extend": [left, right], "loop": [seam]}
    return groups, fields


def _sketch_field() -> tuple[gr.Column, gr.File]:
    """Where a MIDI file is chosen, and the column that holds it."""
    with gr.Column() as column:
        gr.Markdown(MIDI_LIMITS)
        file = gr.File(label="MIDI file", file_types=[".mid", ".midi"], elem_id="midi_file", height=130)
        if MELODY.is_file():
            gr.Examples(
                [[str(MELODY)]],
                [file],
                label="Example",
                example_labels=["Melody of Beethoven's Ode to Joy, 16 s"],
                api_visibility="private",
            )
    return column, file


def _gap_fields() -> tuple[gr.Group, gr.Number, gr.Number]:
    """Beginning and end of a gap, and the group that holds them."""
    with gr.Group(visible=False) as group, gr.Row():
        begin = gr.Number(0, label="Gap from, in seconds", minimum=0, min_width=120, elem_id="gap_begin")
        end = gr.Number(1, label="to", minimum=0, min_width=120, elem_id="gap_end")
    return group, begin, end


def midi_tab(players: Players) -> None:
    """A MIDI file is continued, filled, accompanied or performed; a recording is written down."""
    hears = players.notes.pipeline.ear is not None
    actions = [(words, task) for task, words in ACTIONS.items() if hears or task != "transcribe"]
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            action = gr.Radio(actions, value="continue", show_label=False, elem_id="action")
            sketch, file = _sketch_field()
            with gr.Column(visible=False) as listening:
                gr.Markdown(EAR_LIMITS)
                recording = _recording_field("heard")
            with gr.Group() as going_on:
                seconds = gr.Slider(*NEW_SECONDS, value=20, step=1, label="Seconds to add")
            gap, begin, end = _gap_fields()
            with gr.Column() as drawing:
                seed, new_seed = seed_fields("The same file, seed and settings give the same notes.")
                with gr.Accordion(DRAWING, open=False):
                    temperature, top_p = drawing_fields()
            with gr.Row():
                starts = {
                    task: gr.Button(words, variant="primary", elem_id=task, min_width=100, visible=task == "continue")
                    for words, task in actions
                }
                stop = gr.Button("Stop", elem_id="stop_midi", min_width=100)
        with gr.Column(scale=2, min_width=320):
            sound = player_of(players.live, "player_midi")
            status = status_line()
            roll = piano_roll("player_midi", ROLL, elem_id="roll_midi")
            wav, midi = files_of(midi=True)
            again = gr.Button("Go on with these notes", elem_id="again", size="sm")

    def choose(chosen: str) -> list[dict]:
        shown = {
            sketch: chosen != "transcribe",
            listening: chosen == "transcribe",
            going_on: chosen == "continue",
            gap: chosen == "fill",
            drawing: chosen in ("continue", "fill", "accompany"),
            **{button: task == chosen for task, button in starts.items()},
        }
        return [gr.update(visible=visible) for visible in shown.values()]

    def preview(chosen: str | None, request: gr.Request) -> tuple:
        players.stops.stop(visitor_of(request), *MIDI_TASKS)
        return emptied(players.live), *players.notes.preview(chosen)

    def take(made: str | None) -> tuple:
        return ("continue", made) if made else (gr.skip(), gr.skip())

    action.change(choose, action, [sketch, listening, going_on, gap, drawing, *starts.values()], **HIDDEN)
    file.change(preview, file, [sound, roll, status, begin, end], js=SILENCE, **HIDDEN)
    again.click(take, midi, [action, file], **HIDDEN)
    for task, start in starts.items():
        connect_start(players, task, start)
    file_inputs = {
        "continue": [file, unchecked(seconds)],
        "fill": [file, unchecked(begin), unchecked(end)],
        "accompany": [file],
    }
    functions = {"continue": players.go_on, "fill": players.fill, "accompany": players.accompany}
    outputs = [sound, wav, midi, roll, status]
    for task, inputs in file_inputs.items():
        inputs = [*inputs, seed, new_seed, temperature, top_p]
        connect(task, functions[task], starts[task], inputs, [*outputs, seed])
    connect("perform", players.perform, starts["perform"], [file], outputs)
    if hears:
        connect("transcribe", players.transcribe, starts["transcribe"], [recording], outputs)
    connect_stop(players, stop, *MIDI_TASKS)
