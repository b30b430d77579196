"""Report, learning curve and region map of a run."""
