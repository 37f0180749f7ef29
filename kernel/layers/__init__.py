"""One network, one image: its layers, their gradients, and what stands for them."""
