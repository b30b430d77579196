"""Commands of the `coterie` program. Heavy imports stay inside the functions."""
