"""Runs a script with several argument lists, one after the other, in processes that were launched once.

`accelerate launch … run_examples_in_turn.py SCRIPT ARGUMENTS.json`; the file holds a list of lists.
"""

import json
import runpy
import sys

if __name__ == "__main__":
    script, arguments = sys.argv[1], json.load(open(sys.argv[2]))
    for line in arguments:
        sys.argv = [script, *line]
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as done:
            if done.code:
                raise
