"""`python -m melreformer_hf`: the command `melreformer`, where its script is not on the path."""

from melreformer_hf.cli.main import main

if __name__ == "__main__":
    main()
