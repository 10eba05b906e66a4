"""The functions for scripts and notebooks."""

import warnings

# Libraries that lrbench imports load tqdm, which warns in a notebook without ipywidgets. Nothing here needs them.
warnings.filterwarnings("ignore", message="IProgress not found")
