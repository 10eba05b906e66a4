"""lm-eval tasks: loading, frozen requests, scoring of answers, and the bundled tasks."""
