"""Measurements of search indexes."""
