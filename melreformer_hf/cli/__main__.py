"""`python -m melreformer_hf.cli` is `melreformer`."""

from melreformer_hf.cli.main import main

main()
