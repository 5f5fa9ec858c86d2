"""The subcommands of `ultimus`, one file each."""
