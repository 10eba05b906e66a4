"""The files of a run: rows, samples, manifest."""
