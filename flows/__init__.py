"""The commands that a person runs: wiring only."""
