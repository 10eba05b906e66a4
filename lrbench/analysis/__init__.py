"""From rows to what they say: tables, comparisons, spectra, damage."""
