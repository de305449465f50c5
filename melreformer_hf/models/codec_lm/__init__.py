"""Language model of codec codes, for their lossless compression."""
