"""Models in the numbers of chips: whole numbers of few bits, and where neurons and synapses lie."""
