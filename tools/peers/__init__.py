"""Other libraries driven by the exact prediction: the measurement, outside CI."""
