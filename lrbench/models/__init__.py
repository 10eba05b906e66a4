"""Models: loading, weight slots and roles, editing and restoring, and the bundled `almanac`."""
