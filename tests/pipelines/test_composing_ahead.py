"""Notes that are written while those before them are played: the same music, no farther ahead, errors and endings."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from midi_pipeline_for_tests import piece, tiny_midi_pipeline
from pipeline_utils_for_tests import seeded

from melreformer_hf.pipelines import pipeline_midi_generation
from melreformer_hf.pipelines.composing import held_notes

RATE = 22050


@pytest.fixture
def pipe(monkeypatch):
    """A pipeline on two threads, whatever the machine has."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    yield tiny_midi_pipeline()
    torch.set_num_threads(usual)


def composing_threads(pipe) -> list[str]:
    seen: list[str] = []
    pipe.composer.register_forward_pre_hook(lambda *_: seen.append(threading.current_thread().name))
    return seen


def listen(pipe, seconds: float = 6.0, **arguments) -> tuple[torch.Tensor, list]:
    told: list = []
    chunks = pipe.stream(seconds, generator=seeded(), callback_on_note=told.append, **arguments)
    return torch.cat(list(chunks), dim=-1), [(note.onset, note.row.tolist()) for note in told]


@pytest.mark.parametrize("arguments", [{}, {"prompt": piece(), "chunk_length_in_s": 0.2}, {"synth": "sampled"}])
def test_the_music_is_that_of_one_thread(pipe, monkeypatch, arguments):
    names = composing_threads(pipe)
    beside = listen(pipe, **arguments)
    assert set(names) == {"melreformer-ahead"} and torch.get_num_threads() == 2
    monkeypatch.setattr(pipeline_midi_generation, "calm_number", lambda device: 1)
    names.clear()
    alone = listen(pipe, **arguments)
    assert set(names) == {"MainThread"}
    assert beside[1] == alone[1] and len(alone[1]) > 5
    torch.testing.assert_close(beside[0], alone[0], rtol=0, atol=1e-5)


def test_notes_are_told_in_the_thread_that_plays(pipe):
    names = set()
    for _ in pipe.stream(
        3.0, generator=seeded(), callback_on_note=lambda _: names.add(threading.current_thread().name)
    ):
        pass
    assert names == {"MainThread"}


def test_every_note_is_told_once_and_before_it_sounds(pipe):
    told, played = [], 0
    for chunk in pipe.stream(6.0, generator=seeded(), callback_on_note=told.append):
        played += chunk.shape[-1]
        assert told[-1].onset / 100 > min(played / RATE, 5.0) - 0.5
    assert sorted(held_notes(told)) == sorted(pipe(6.0, generator=seeded(), output_type="notes").notes[0])


def test_the_composer_waits_for_whoever_does_not_listen(pipe):
    names = composing_threads(pipe)
    stream = pipe.stream(600.0, generator=seeded())
    next(stream)
    time.sleep(0.5)
    waiting = len(names)
    time.sleep(0.5)
    assert len(names) == waiting
    next(stream)
    stream.close()
    assert "melreformer-ahead" not in {thread.name for thread in threading.enumerate()}


def test_errors_of_the_composer_reach_the_listener(pipe):
    def fail(module, arguments, kwargs):
        if kwargs["cache"].seen > 20:
            raise RuntimeError("no further")

    handle = pipe.composer.register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(RuntimeError, match="no further"):
        list(pipe.stream(60.0, generator=seeded()))
    handle.remove()
    with pytest.raises(ValueError, match="beyond 2.1 s"):
        next(pipe.stream(1.0, prompt=piece()))
    assert "melreformer-ahead" not in {thread.name for thread in threading.enumerate()}


def test_errors_of_the_player_end_the_composer(pipe):
    def fail(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(pipe.stream(60.0, generator=seeded(), callback_on_mel=fail))
    assert "melreformer-ahead" not in {thread.name for thread in threading.enumerate()}


def test_an_autocast_keeps_everything_in_its_thread(pipe):
    names = composing_threads(pipe)
    with torch.autocast("cpu", torch.bfloat16):
        next(pipe.stream(2.0, generator=seeded()))
    assert set(names) == {"MainThread"}
