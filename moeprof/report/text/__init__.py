"""Results as text for a terminal: 80 columns, aligned, with units, and no colour to rely on."""
