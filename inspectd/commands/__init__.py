"""The commands behind `inspectd`, one a module; `inspectd.cli` parses and calls them."""
