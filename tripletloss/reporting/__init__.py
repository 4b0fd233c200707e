"""Pages for people: what a run or a measurement has to show, in one HTML file."""
