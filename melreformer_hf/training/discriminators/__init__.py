"""Discriminators: plain modules that return (logits, feature maps), one entry per sub-discriminator.

`waveform`: HiFi-GAN's periods and scales. `melgan`: MelGAN's scales. `spectrogram`: log-magnitudes at several resolutions.
`stft`: EnCodec's, over real and imaginary parts. `soundstream`: the SoundStream-like codec's two. `patch`: of mels and other
pictures. `stylegan2`: of pictures with their durations, with a form of its own. `stacks`: what several share. `drawing`:
which of several judges next.
"""
