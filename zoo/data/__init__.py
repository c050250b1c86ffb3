"""Reading the data sets and files that models are trained on and run on."""
