"""Many runs of one recipe, compared."""
