"""How often, where, how regularly and how jointly the neurons of each layer fire."""
