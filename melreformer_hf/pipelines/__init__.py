"""Pipelines: a base, the part that ends in a vocoder, outputs per task, and one file per pipeline."""
