"""The commands of `svitt-ego`, one file per group: `add_x_arguments` adds the arguments of x, and `run_x` runs it.

A command imports the modules that it works with when it runs, so that `svitt-ego --help` answers at once.
"""
