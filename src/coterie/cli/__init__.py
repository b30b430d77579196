"""The verbs of the command line, one module per noun. Heavy imports stay inside the functions."""
