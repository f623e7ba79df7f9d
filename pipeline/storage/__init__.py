"""Where samples are stored: one file for each storage, that reads and writes it."""
