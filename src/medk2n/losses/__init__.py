"""One idea a file; tensors in, one value per query out. The weights are config."""
