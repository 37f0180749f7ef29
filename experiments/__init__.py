"""The research on top of the product: studies, sweeps, statistics, dynamics, approximation."""
