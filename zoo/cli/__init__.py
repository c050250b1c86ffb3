"""The `zoo` program: thin. It finds the port, loads the weights, and shows what the port's own functions yield."""
