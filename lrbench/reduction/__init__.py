"""From a plan to reduced weights: cells, ranks, allocations, calibration, and the edit of a model."""
