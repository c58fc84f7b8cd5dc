"""What training should do: message widths, partition and method, chosen by forecast."""
