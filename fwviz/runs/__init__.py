"""Recipes, the runner, traces, the run store and exports."""
