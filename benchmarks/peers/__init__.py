"""Other ways to run the same layers, as their own users would write them."""
