"""From a plan to a model: build, processor, verification, inventory."""
