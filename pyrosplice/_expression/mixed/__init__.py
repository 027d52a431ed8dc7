"""Expression with random effects: formulas with groups, fields in space, and what rests on them."""
