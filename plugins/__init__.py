"""The built-in reducers, one file per method, registered by entry points in pyproject.toml."""
