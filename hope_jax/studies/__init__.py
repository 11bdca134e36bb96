"""Studies: what trains models to report on them.

`runner.py` makes a table of many small runs; a file a kind of table. The
quickstart trains one model and tells what came of it.
"""
