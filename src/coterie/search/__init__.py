"""Full-text search over passages: index, retrieval server and corpora."""
