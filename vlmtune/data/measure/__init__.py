"""How long rows are, before any image is decoded: each rendered and tokenised once."""
