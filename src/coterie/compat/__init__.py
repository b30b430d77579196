"""Interfaces of other trainers over coterie's own."""
