"""The subcommands, one module each with a `main`; `arguments` holds what they share."""
