"""What training frameworks need of a `SageSampler` beyond being one; each in a module of its own.

A plain loop, DDP and torchdata's `StatefulDataLoader` need nothing. Nothing here is imported by
`sage_torch`; each module needs its framework: `pip install 'sage-torch[lightning]'`,
`'sage-torch[accelerate]'`, `'sage-torch[transformers]'`.
"""
