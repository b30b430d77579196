"""Runs of several settings and seeds, compared."""
