"""Diagnostic rules over the metrics of a run."""
