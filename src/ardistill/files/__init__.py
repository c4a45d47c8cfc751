"""Files that are whole or not there: stores, checkpoints, weights and pictures."""
