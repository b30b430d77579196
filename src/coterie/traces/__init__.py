"""Worked solutions with annotated steps: procedural task families, checkers of their steps, and users' own traces."""
