"""What a plugin author needs: the reducer, ranks and parameters, factors, the registry, conformance checks."""
