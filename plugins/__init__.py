"""The built-in reducers, one file per method; each registers itself by an entry point in pyproject.toml."""
