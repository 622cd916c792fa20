"""Stage three: relational heads, trained from the cache."""
