"""The guide: what every knob costs, in numbers."""
