"""From published data sets to a datalist of the bundle: sources, conversion, split, summary."""
