"""Settings of coterie. Importable without torch."""
