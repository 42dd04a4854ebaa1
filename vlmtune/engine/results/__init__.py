"""What a run leaves: which of its states, in which files, and what other people are told of it."""
