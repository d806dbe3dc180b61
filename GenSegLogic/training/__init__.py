"""Training: one recipe per bundle that ships, rerun with ``genseg train RECIPE``."""
