"""Models: loading, weight slots and roles, editing, integrity, and the bundled model `almanac`."""
