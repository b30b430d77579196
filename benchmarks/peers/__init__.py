"""What a step costs here, beside what the same step costs elsewhere."""
