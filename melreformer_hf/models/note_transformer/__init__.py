"""Language model of notes: configuration, attention over notes and time, heads that write a note's attributes in turn."""
