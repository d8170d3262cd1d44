"""What a killed selection continues from, and how it knows that it is the same selection."""
