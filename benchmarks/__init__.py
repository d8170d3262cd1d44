"""Measurements behind what the README and the documentation claim.

    speed/    claims about time and memory
    quality/  claims about accuracy, the rivals, and how a trial runs; speed/ may import it
    choices/  how a default was chosen, and the studies that are finished
    results/  what was measured, and `page`, which makes RESULTS.md of it

Each script runs from the project's root: `python -m benchmarks.speed.sketch`.
"""
