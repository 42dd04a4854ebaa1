"""What transformers' Trainer is given in place of its own."""
