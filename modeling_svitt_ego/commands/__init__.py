"""The commands of `svitt-ego`, a file per group: `add_x_arguments` says what x takes, `run_x` does it.

A command imports what it works with when it runs: `svitt-ego --help` should not take seconds.
"""
