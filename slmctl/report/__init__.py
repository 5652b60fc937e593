"""The comparison of a pipeline's models: small tables for the terminal and one self-contained HTML page.

Legend of shapes: C checkpoints, N tokens. Everything here reads plain data (`results.json`, `highlights.json`, logs) and
takes no part of it for granted: what is absent is left out, and a number that does not exist is shown as a dash.
"""
