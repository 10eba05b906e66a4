"""lm-eval tasks: load them, freeze their requests, score answers; and the bundled tasks."""
