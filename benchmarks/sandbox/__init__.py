"""Hostile and benign programs for the sandboxes, and the table of what each tier contains."""
