"""Figures as SVG: one drawing each, in the page's colours or as a file of its own."""
