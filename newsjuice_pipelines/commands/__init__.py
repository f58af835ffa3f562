"""What the `newsjuice` command does, one module a subcommand. Reading arguments is `cli.py`'s business."""
