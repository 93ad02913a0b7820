"""What every room stands on: checks, draws, precision, rounding, spectra, files, progress."""
