"""Language model of a codec's codes, and their lossless compression with it.

`configuration_codec_lm`: sizes. `modeling_codec_lm`: `CodecLMModel`. `fixed_point_codec_lm`: a frozen copy of it in exact
arithmetic (`integers_codec_lm`), whose probabilities are the same on every machine; `range_coder_codec_lm`: bytes from
symbols and probabilities. `blocks_codec_lm`: blocks of our own files. `ecdc_codec_lm` and `container_codec_lm`: EnCodec's own files. `weights_codec_lm`: original
checkpoints.
"""
