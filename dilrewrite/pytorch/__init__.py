"""The 2016 benchmark in PyTorch, forward and backward, and module rewriting for training. Loads torch when used."""
