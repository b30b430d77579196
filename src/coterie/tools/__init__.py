"""Tools that a model may call: schemas, wire formats, worker processes, and the built-in ones."""
