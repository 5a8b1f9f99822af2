"""Run the command: `python -m root_dash.cli`."""

from root_dash.cli.main import main

main()
