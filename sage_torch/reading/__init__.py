"""The reading of a data set for a selection: batches in a seeded order, by shards, by ranks."""
