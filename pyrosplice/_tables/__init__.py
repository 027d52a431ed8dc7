"""Tables, labels, names and formulas as people hold them, read by one rule each."""
