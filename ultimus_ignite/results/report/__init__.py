"""One HTML page about one or more runs, which needs no network and no other file."""
