"""Training nano with a compressive memory alone: data, run and evaluation."""
