"""HiFi-GAN, HiFiHybrid and a fast inverse-STFT vocoder."""
