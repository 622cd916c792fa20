"""Recipes: one TOML file per result that a paper reports, and the demo's."""
