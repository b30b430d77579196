"""Every setting of coterie. Importable without torch."""
