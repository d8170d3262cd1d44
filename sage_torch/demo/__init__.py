"""`python -m sage_torch demo`: full data, a random subset and a SAGE subset, side by side.

It goes `data -> training (warm up, select, train) -> report`, and needs
`pip install 'sage-torch[demo]'`.
"""
