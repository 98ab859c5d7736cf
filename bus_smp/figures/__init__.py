"""Arrays and tables to PNG files. Never torch."""
