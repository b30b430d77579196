"""The Python interface: `coterie.train` and the other verbs."""
