"""The comparison as a terminal table and as one self-contained HTML page."""
