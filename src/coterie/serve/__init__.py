"""A model behind an OpenAI-compatible endpoint: continuous batching in one engine thread, over HTTP."""
