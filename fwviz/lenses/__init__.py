"""One file per analysis: a pool or a recorded run → a tidy DataFrame, one observation per row.

The first parameter says what a lens reads: ``assembly`` (a recipe with its pool opened; measures gradients and losses),
``trace`` or ``traces`` (recorded runs; measures nothing). Everything else has a default. Losses and scores are in nats,
accuracies in [0, 1]. Tasks and checkpoints come in the order of the recipe, which fixes their colours in the charts.
"""
