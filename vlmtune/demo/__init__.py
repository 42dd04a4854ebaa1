"""The offline demo: a digit data set and a tiny vision-language model to fine-tune on it."""
