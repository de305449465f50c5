"""Network blocks with two users or more: plain keyword arguments, no configuration object, no files.

- `attention`: attention by name, within windows, to neighbors; `gpt`: causal transformers, their caches and generation.
- `conv`, `convnext`, `resample2d`, `equalized`: convolutions; `streaming`: finite reach over endless input.
- `positions`: rotary and sinusoidal; `configuration`: the base of every configuration.
- `quantization`: every family's quantizer.
"""
