"""From text to batches: sources -> pack -> .bin/.idx -> mixture -> batches. No torch in here."""
