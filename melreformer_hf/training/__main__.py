"""`accelerate launch -m melreformer_hf.training RECIPE --config NAME --dataset DIR`."""

from melreformer_hf.training.main import main

if __name__ == "__main__":
    main()
