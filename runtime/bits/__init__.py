"""How many bits each halo message gets: the rules a run may ask for, foremost AdaQP's adaptive assignment."""
