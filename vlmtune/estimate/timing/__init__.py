"""Time before the launch: kernels of a simulated step, what each takes on a card, and a run's seconds from them."""
