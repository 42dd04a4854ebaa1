"""What pictures are on their way to the processor: found, told apart, turned into 8-bit RGB."""
