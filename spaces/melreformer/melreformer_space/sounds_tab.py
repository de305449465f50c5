"""The tab of sounds."""

from __future__ import annotations

import gradio as gr

from melreformer_space.edits import edited_figure
from melreformer_space.limits import MAX_SECONDS, MAX_UPLOAD_MEGABYTES, TEMPERATURE
from melreformer_space.players import SOUND_TASKS, Players
from melreformer_space.sounds import GUIDANCE, SOUND_SECONDS
from melreformer_space.widgets import (
    HIDDEN,
    connect,
    connect_start,
    connect_stop,
    files_of,
    player_of,
    seed_fields,
    status_line,
    unchecked,
)

LIMITS = f"""Up to {MAX_SECONDS} seconds and {MAX_UPLOAD_MEGABYTES} MB of WAV, FLAC, OGG or MP3. What is kept of a repaired
recording is kept to the last sample; a gap is at most a few seconds long."""
ACTIONS = {"sound": "Draw a sound", "repair": "Repair a gap", "between": "Between two recordings"}


def sounds_tab(players: Players) -> None:
    """A sound of a class, a repaired recording, or what lies between two."""
    actions = [(words, task) for task, words in ACTIONS.items() if task != "between" or players.sounds.blends]
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            action = gr.Radio(actions, value="sound", show_label=False, elem_id="sound_action")
            name = gr.Dropdown(players.sounds.names, value=players.sounds.names[0], label="Class", elem_id="class")
            groups, fields = _fields()
            seed, new_seed = seed_fields("The same seed and settings give the same sound.")
            with gr.Row():
                starts = {
                    task: gr.Button(words, variant="primary", elem_id=f"start_{task}", visible=task == "sound")
                    for words, task in actions
                }
                stop = gr.Button("Stop", elem_id="stop_sound", min_width=100)
        with gr.Column(scale=2, min_width=320):
            sound = player_of(players.live, "player_sounds")
            status = status_line()
            picture = edited_figure()
            (wav,) = files_of(midi=False)

    def choose(chosen: str) -> list[dict]:
        shown = {
            name: chosen != "between",
            groups["drawing"]: chosen == "sound",
            groups["recording"]: chosen != "sound",
            groups["gap"]: chosen == "repair",
            groups["other"]: chosen == "between",
            **{button: task == chosen for task, button in starts.items()},
        }
        return [gr.update(visible=visible) for visible in shown.values()]

    order = ("drawing", "recording", "gap", "other")
    action.change(choose, action, [name, *(groups[part] for part in order), *starts.values()], **HIDDEN)
    inputs = {
        "sound": [unchecked(name), *fields["drawing"]],
        "repair": [*fields["recording"], *fields["gap"], unchecked(name)],
        "between": [*fields["recording"], *fields["other"]],
    }
    functions = {"sound": players.sound, "repair": players.repair, "between": players.between}
    for task, start in starts.items():
        connect_start(players, task, start)
        connect(task, functions[task], start, [*inputs[task], seed, new_seed], [sound, wav, picture, status, seed])
    connect_stop(players, stop, *SOUND_TASKS)


def _fields() -> tuple[dict[str, gr.Group], dict[str, list[gr.components.Component]]]:
    """Groups of settings, and the fields in them."""
    with gr.Group() as drawing:
        seconds = gr.Slider(*SOUND_SECONDS, value=4, step=1, label="Length in seconds")
        guidance = gr.Slider(
            *GUIDANCE, value=2.0, step=0.1, label="Guidance", info="How much the class is exaggerated."
        )
        temperature = gr.Slider(*TEMPERATURE, value=1.0, step=0.05, label="Temperature")
    with gr.Group(visible=False) as recorded:
        gr.Markdown(LIMITS)
        recording = gr.Audio(label="Recording", type="filepath", sources=["upload", "microphone"], elem_id="damaged")
    with gr.Group(visible=False) as gap, gr.Row():
        begin = gr.Number(1, label="Gap from, in seconds", minimum=0, min_width=120)
        end = gr.Number(1.5, label="to", minimum=0, min_width=120)
    with gr.Group(visible=False) as others:
        other = gr.Audio(label="Another recording", type="filepath", sources=["upload"], elem_id="other_sound")
        weight = gr.Slider(0, 1, value=0.5, step=0.05, label="Weight", info="0 is the first, 1 the other.")
    groups = {"drawing": drawing, "recording": recorded, "gap": gap, "other": others}
    fields = {
        "drawing": [unchecked(field) for field in (seconds, guidance, temperature)],
        "recording": [recording],
        "gap": [unchecked(begin), unchecked(end)],
        "other": [other, unchecked(weight)],
    }
    return groups, fields


__all__ = ["sounds_tab"]
