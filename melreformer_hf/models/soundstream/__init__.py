"""A neural audio codec: waveforms as a few streams of codes, and back, whole or chunk by chunk.

`configuration_soundstream`: sizes. `modeling_soundstream`: `SoundStreamModel`. `coder_soundstream`: its encoder and
decoder. `multires_soundstream` and `wavelets_soundstream`: multiresolution convolution and wavelet upsampling;
`energy_soundstream`: the energy transformer; all three are options of the codec. `weights_soundstream` and
`weights_quantizers`: original checkpoints of codecs and of quantizers alone. The quantizers are `nn.quantization`.
"""
