"""Settings: schema, files, flags and their messages; no torch."""
