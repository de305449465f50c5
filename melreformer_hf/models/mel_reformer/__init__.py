"""MelReformer: an idea mel and a duration to a mel of that duration; the original program and one for any length."""
