"""What users call: fit, test, summary, save, load."""
