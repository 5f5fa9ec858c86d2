"""The subcommands: one module each, with a `main`; they share the flags in `arguments`."""
