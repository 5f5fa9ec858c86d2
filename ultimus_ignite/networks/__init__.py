"""Any network: found by its name, its weights in a file, its layers as a table."""
