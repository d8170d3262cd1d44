"""The two passes: gradients into a sketch, sketched gradients into scores."""
