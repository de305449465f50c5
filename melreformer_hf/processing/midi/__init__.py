"""MIDI as numbers.

- `parsing`: files to arrays of events, every damage named by its byte.
- `columns`: notes, their starts and ends, and the pedal, as arrays.
- `notes`: `MidiNote`, reading and writing files, to the tick.
- `vocabulary`: which token number means what, in every scheme.
- `arrival`: events of the arrival-time scheme (time, duration, note), and what is done with lists of them.
- `interarrival`: waits, starts and ends.
- `grammar`: which token may follow, so that whatever a model draws is music.
"""
