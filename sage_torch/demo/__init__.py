"""`python -m sage_torch demo`: full data, a random subset and a SAGE subset, side by side.

`data -> training (warm up, select, train) -> report`; needs `pip install 'sage-torch[demo]'`.
"""
