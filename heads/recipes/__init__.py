"""Recipes: TOML files found by name."""
