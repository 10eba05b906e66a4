"""Planning cells, calibrating, allocating ranks, reducing weights and applying them to a model."""
