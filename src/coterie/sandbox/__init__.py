"""Sandboxes for code that a model wrote: WASI, bubblewrap, and resource limits alone."""
