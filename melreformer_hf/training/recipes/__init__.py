"""Training recipes: what is trained, on what, with which losses, and how it is measured."""
