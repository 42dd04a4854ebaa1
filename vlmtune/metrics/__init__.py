"""How good an answer is: metrics of what a model wrote beside what was expected."""
