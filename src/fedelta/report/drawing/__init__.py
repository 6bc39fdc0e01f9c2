"""Charts as SVG text, from plain numbers: no script, no font, no colour of their own; classes are coloured by the page."""
