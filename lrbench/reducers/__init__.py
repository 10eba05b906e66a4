"""The plugin side: reducers, their ranks and parameters, factors, the plugin registry, conformance checks."""
