"""Rules turn scores and sketched gradients into a subset: one object per rule."""
