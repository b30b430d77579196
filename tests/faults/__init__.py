"""Faults on purpose: kill, fill the disk, flip bits, and compare with a run that was left alone.

`python3 bootstrap.py faults` runs the long set and writes a table; the tests beside this file run a short one.
"""
