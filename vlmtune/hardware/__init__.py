"""The cards there are, and the one in this machine."""
