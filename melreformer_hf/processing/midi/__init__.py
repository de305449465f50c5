"""MIDI as numbers.

- `notes`: `MidiNote`, reading and writing files with mido, to the tick; `fast` reads whole collections with symusic.
- `vocabulary`: which token number means what, in every scheme.
- `arrival`: events of the arrival-time scheme (time, duration, note), and what is done with lists of them.
- `interarrival`: waits, starts and ends.
"""
