"""Python interface: what `import coterie` offers."""
