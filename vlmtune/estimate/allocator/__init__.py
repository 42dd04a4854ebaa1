"""PyTorch's caching allocator, replayed over what was allocated."""
