"""How a selection reads the data set: batches in a seeded order, by shards, by ranks."""
