"""The Space's parts: what visitors may ask for, what is played to them, and what they see."""
