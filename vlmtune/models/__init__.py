"""From a plan to a model: families (data about architectures), processor, build, inventory."""
