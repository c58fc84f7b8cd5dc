"""halocast: traced full-graph GNN training, and forecasts of what it would have done otherwise."""

__version__ = "0.1.0"
