"""Integrations of `SageSampler` with training frameworks, one module per framework.

A plain loop, DDP and torchdata's `StatefulDataLoader` need no integration. `sage_torch` imports
none of these modules. Each needs its framework: `pip install 'sage-torch[lightning]'`,
`'sage-torch[accelerate]'` or `'sage-torch[transformers]'`.
"""
