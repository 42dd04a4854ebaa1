"""Several processes that train one model, each on a GPU of its own (data parallel)."""
